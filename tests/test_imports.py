"""Imports go one way, as docs/architecture.md says, and what has to answer at once imports no TensorFlow.

The files are read, not run: a way that no test takes counts as well.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipelines", "kimagenet", "tools", "bench")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
# Which packages a package may import; only tests import `bench` and `tools`.
ALLOWED = {
    "pipelines": {"pipelines"},
    "kimagenet": {"kimagenet", "pipelines"},
    "tools": {"tools", "kimagenet", "pipelines"},
    "bench": {"bench", "kimagenet", "pipelines"},
}
# None of these may reach one that stands further down, by whatever way.
CHAIN = (
    "pipelines.records",
    "pipelines.shards",
    "pipelines.augment",
    "pipelines.plan",
    "pipelines.loader",
    "pipelines.loaders",
    "kimagenet.loop",
    "kimagenet.train",
    "bench.__main__",
)
HEAVY = {"tensorflow", "keras", "nvidia"}
COMMANDS = [f"kimagenet.{name}" for name in ("train", "evaluate", "predict", "export", "doctor", "models.__main__")]
LIGHT = [
    "pipelines",
    "kimagenet.recipe",
    "kimagenet.schedule",
    *COMMANDS,
    *(n for n in FILES if n.startswith("tools.")),
]


class Import(NamedTuple):
    """What one file imports: a module; `late` if a function does it when it is called."""

    module: str
    late: bool


@cache
def imports_of(name: str) -> tuple[Import, ...]:
    """All but those for a type checker; of `from package import module` the module."""
    return tuple(_imports(ast.parse(FILES[name].read_text(encoding="utf-8")), late=False))


def _imports(node: ast.AST, late: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, late) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            module = str(child.module)
            whole = (f"{module}.{alias.name}" for alias in child.names)
            yield from (Import(name if name in FILES else module, late) for name in whole)
        yield from _imports(child, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def reached(name: str, late: bool) -> dict[str, str]:
    """Every module that importing `name` imports (with `late`, or calling it may), and which one imports it."""
    found, waiting = {name: ""}, [name]
    while waiting:
        current = waiting.pop()
        for module, is_late in imports_of(current) if current in FILES else ():
            parts = module.split(".")
            parents = [] if late else [".".join(parts[:end]) for end in range(1, len(parts))]  # their __init__ runs too
            for each in (*parents, module) if late or not is_late else ():
                if each not in found:
                    found[each] = current
                    waiting.append(each)
    return found


def test_packages_import_one_way() -> None:
    wrong = [
        f"{name} imports {module}"
        for name in FILES
        for module, _ in imports_of(name)
        if (package := module.split(".")[0]) in (*PACKAGES, "tests") and package not in ALLOWED[name.split(".")[0]]
    ]
    assert wrong == []


def test_models_optimizers_and_schedules_know_nothing_of_the_data() -> None:
    parts = ("kimagenet.models", "kimagenet.optim", "kimagenet.schedule")
    names = [name for name in FILES if name.startswith(parts)]
    found = {module for name in names for module, _ in imports_of(name) if module.startswith("pipelines")}
    assert found <= {"pipelines.errors", "pipelines.files"}


@pytest.mark.parametrize("name", CHAIN)
def test_nothing_reaches_what_stands_above_it(name: str) -> None:
    above = CHAIN[CHAIN.index(name) + 1 :]
    assert {module: by for module, by in reached(name, late=True).items() if module in above} == {}


@pytest.mark.parametrize("name", LIGHT)
def test_what_answers_at_once_imports_no_tensorflow(name: str) -> None:
    found = reached(name, late=False)
    assert {module: by for module, by in found.items() if module.split(".")[0] in HEAVY} == {}


def test_no_two_files_import_each_other() -> None:
    circles = {
        (name, module)
        for name in FILES
        for module, _ in imports_of(name)
        if module in FILES and name in reached(module, late=True)
    }
    assert circles == set()
