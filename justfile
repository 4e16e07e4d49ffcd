# The maintainers' commands. `just` lists them; `pip install rust-just` brings it. Each line also works without just.

export NO_MKDOCS_2_WARNING := "1"

# List the commands
default:
    @just --list

# Install everything into .venv
setup:
    python3 -m venv .venv && .venv/bin/pip install uv && .venv/bin/uv sync --inexact --extra dali --extra dev

# Run the fast tests: the decisions, in under a minute
fast:
    .venv/bin/python -m pytest -m fast

# Run all tests, the linter and the type checker, as CI does
test:
    bash .ci/run

# Format the code and fix what the linter can fix
format:
    .venv/bin/ruff format . && .venv/bin/ruff check --fix .

# Check format and lint
lint:
    .venv/bin/ruff format --check . && .venv/bin/ruff check .

# Check types
types:
    .venv/bin/mypy

# Build the site into site/ and check its links
docs:
    .venv/bin/mkdocs build --strict

# Show the site at http://127.0.0.1:8000
serve:
    .venv/bin/mkdocs serve

# Print the rooms of the code and who imports whom
structure:
    .venv/bin/python -m tools.structure
