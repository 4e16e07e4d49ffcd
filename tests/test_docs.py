"""Every code block of README and docs runs in a test, or a comment above it says why not. Links and names are right."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kimagenet import augmentation
from kimagenet.recipe import Recipe
from pipelines.shards.dataset import DatasetInfo
from tests.helpers.data import jpeg, photo
from tests.helpers.documents import PAGES, ROOT, blocks, commands, marked, prose
from tools.structure import ROOMS

OUTPUT = ("text", "")  # what a command printed
NOT_HERE = ("run command", "test command")  # they set up an environment, with a network; .ci/run runs the second
README_LINES = 120
OTHERS_FLAGS = {
    *(
        "--help",
        "--extra",
        "--inexact",
        "--no-build-isolation",
        "--check",
        "--strict",
    ),  # argparse, uv, pip, ruff, mkdocs
    *("--rm", "--gpus", "--signal", "--shm-size", "--ipc", "--tag"),  # docker, SLURM
    *("--opt", "--grad-accum-steps", "--how", "--logdir"),  # timm, tests.helpers.interrupt, TensorBoard
    *("--onnx", "--fp16", "--saveEngine", "--minShapes", "--optShapes", "--maxShapes"),  # trtexec
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_how_it_is_tested(page: Path) -> None:
    for block in blocks(page):
        what = f"{page.name}: {block.code.splitlines()[0]!r}"
        if block.language in OUTPUT:
            continue
        if tested := re.fullmatch(r"tested: (tests/\w+\.py)", block.mark):
            assert (ROOT / tested[1]).is_file(), what
        else:
            reason = re.fullmatch(r"not run: \w.{10,}", block.mark)
            assert block.mark == "tour" or block.mark in NOT_HERE or reason, f"{what} has no mark: {block.mark!r}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_lead_to_headings() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            linked = (page.parent / target).resolve() if target else page
            headings = re.findall(r"^#+ (.+)$", prose(linked), re.MULTILINE)
            assert anchor in map(anchor_of, headings), f"{page.name}: {target}#{anchor}"


def anchor_of(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def test_pages_name_files_that_exist() -> None:
    named = re.compile(r"`((?:pipelines|kimagenet|tools|bench|tests|docs)/[\w./]+\.(?:py|cc|md|json|png))`")
    found = {name: page.name for page in PAGES for name in named.findall(prose(page))}
    assert "pipelines/plan.py" in found
    examples = {block.code for block in blocks(ROOT / "docs" / "extending.md")}
    assert len(examples) >= 4  # files that the reader makes
    made = {"pipelines/loaders/pillow.py", "kimagenet/models/tiny.py"}
    missing = [f"{page}: {name}" for name, page in found.items() if not (ROOT / name).exists() and name not in made]
    assert missing == []


def test_commands_are_there() -> None:
    modules = {
        module
        for page in PAGES
        for module in re.findall(r"python -m ((?:kimagenet|tools|bench)[.\w]*)", page.read_text(encoding="utf-8"))
    }
    assert {"kimagenet.train", "tools.build_shards"} <= modules
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_flags_are_there() -> None:
    """Every flag that a page names is a field of the recipe, is in our code, or belongs to another program."""
    folders = ("kimagenet", "pipelines", "tools", "bench")
    source = "\n".join(path.read_text(encoding="utf-8") for name in folders for path in (ROOT / name).rglob("*.py"))
    fields = {field.name for field in dataclasses.fields(Recipe)} | set(augmentation.changeable())
    for page in PAGES:
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", page.read_text(encoding="utf-8")):
            names = {flag, flag.replace("--no-", "--")}  # a flag of two states has a second name
            known = any(f'"{name}"' in source or name[2:].replace("-", "_") in fields for name in names)
            assert known or flag in OTHERS_FLAGS, f"{page.name}: {flag}"


def test_extras_are_there() -> None:
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    known = set(re.findall(r"^(\w+) = \[", extras.split("\n[")[0], re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"--extra (\w+)", text) + ",".join(re.findall(r"\.\[([\w,]+)\]'", text)).split(",")
        assert set(named) - {"", "NAME"} <= known, page.name


def test_maintainers_commands_are_those_of_the_justfile() -> None:
    recipes = dict(re.findall(r"^(\w+):\n    (.+)$", (ROOT / "justfile").read_text(encoding="utf-8"), re.MULTILINE))
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|`]+\| `([^`]+)` \| `just (\w+)` \|$", table, re.MULTILINE)
    assert len(rows) >= 6
    for command, recipe in rows:
        assert shortened(recipes[recipe]) == shortened(command), recipe


def shortened(command: str) -> str:
    """A command as one types it in the activated environment."""
    return command.replace(".venv/bin/", "").replace("python -m pytest", "pytest")


def test_dataset_json_of_the_page_is_one() -> None:
    (block,) = (block for block in blocks(ROOT / "docs" / "data-format.md") if block.language == "json")
    info = DatasetInfo.model_validate_json(block.code)
    assert (info.splits["train"].num_records, info.splits["train"].quarantine) == (2, [1])


def test_rooms_of_the_page_are_those_of_the_code() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("| room | task |")[1]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([\w.]+)`", row)]
    assert len(named) > 20
    assert named == [room for room in ROOMS if room in named]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_commands_of_the_readme_are_those_of_the_tour() -> None:
    tour = [command for block in marked("tour") for command in commands(block)]
    (block,) = (b for b in blocks(ROOT / "README.md") if b.language == "bash" and b.mark.startswith("tested"))
    assert len(commands(block)) == 5
    for command in commands(block):
        assert any(line == command or line.startswith(f"{command} ") for line in tour), command


@pytest.mark.slow
@pytest.mark.parametrize("page", ["models.md", "optimizers.md"])
def test_python_of_the_pages(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (block for block in blocks(ROOT / "docs" / page) if block.language == "python")
    names: dict[str, object] = {}
    exec(block.code, names)
    if page == "models.md":
        assert re.search(r"^[\d,]+ parameters, [\d,]+ multiply-adds$", capsys.readouterr().out, re.MULTILINE)
    else:
        assert type(names["optimizer"]).__name__ == "IterSize"


@pytest.mark.slow
def test_the_tour(tmp_path: Path) -> None:
    """The commands of README and docs one after the other, as written, with a folder of a few small pictures."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("validation", 5)):
        for label, name in enumerate(("Apple", "Carrot", "Milk", "Pear")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{name}_{number:03d}.jpg").write_bytes(jpeg(photo(rng, label, 90, 120)))
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "CUDA_VISIBLE_DEVICES": "",
    }
    assert len(marked("tour")) >= 3
    for block in marked("tour"):
        command = ["bash", "-euo", "pipefail", "-c", block.code]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{block.page.name}:\n{block.code}\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr
