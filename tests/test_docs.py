"""Every code block of README and docs runs in a test, or says above itself why it does not."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.shards.dataset import DatasetInfo
from tests.helpers.data import jpeg, photo
from tests.helpers.documents import PAGES, ROOT, Block, blocks

OUTPUT = ("text", "")  # what a command printed
NOT_HERE = ("run command", "test command")  # they set up an environment, with a network; .ci/run runs the second


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_becomes_of_it(page: Path) -> None:
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


def test_dataset_json_of_the_page_is_one() -> None:
    (block,) = (block for block in blocks(ROOT / "docs" / "data-format.md") if block.language == "json")
    info = DatasetInfo.model_validate_json(block.code)
    assert (info.splits["train"].num_records, info.splits["train"].quarantine) == (2, [1])


def tour() -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.mark == "tour"]


@pytest.mark.slow
def test_the_tour(tmp_path: Path) -> None:
    """README's and docs' commands one after the other, as they stand, over a folder of a few small pictures."""
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
    assert len(tour()) >= 3
    for block in tour():
        command = ["bash", "-euo", "pipefail", "-c", block.code]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{block.page.name}:\n{block.code}\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr
