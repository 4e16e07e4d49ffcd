"""Disks that are full or cannot be written: one line, nothing half-written, and the next command goes through."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from kimagenet import train
from pipelines.index import index_path
from tests import faults, interrupt
from tools import build_index, build_shards

Main = Callable[[list[str]], int]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Images, and shards without indexes."""
    interrupt.write_images(tmp_path)
    interrupt.write_shards(tmp_path)
    for name in ("built", "run"):
        (tmp_path / name).mkdir()
    return tmp_path


LINES: dict[str, tuple[Main, str, str]] = {
    "build": (build_shards.main, "--source={0}/images --output={0}/built --workers=1", "built"),
    "index": (build_index.main, "{0}/shards --workers=1", "shards"),
    "train": (train.main, "demo --loader=tfdata --dataset-dir={0}/shards --output={0}/run/new --epochs=1", "run"),
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_what_cannot_be_written_is_not_there(work: Path, name: str, fault: str, capsys: pytest.CaptureFixture) -> None:
    main, line, output = LINES[name]
    arguments = [*line.format(work).split()]
    if name == "train":
        assert build_index.main([str(work / "shards"), "--workers=1"]) == 0
        arguments += ["--image-size=32", "--batch-size=50", "--workers=1"]
    before = interrupt.contents(work)
    trouble: AbstractContextManager[None] = (
        faults.full_disk(600 if name == "train" else 200) if fault == "full" else faults.read_only(work / output)
    )
    capsys.readouterr()
    with trouble:
        assert main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(r"^error: [^\n]*" + re.escape(str(work)) + r"[^\n]+\n\Z", error, re.MULTILINE), error
    assert "Traceback" not in error
    after = interrupt.contents(work)
    assert {path: after[path] for path in before} == before
    assert not [path for path in after if path.endswith(".tmp")]
    if name == "index":
        assert all(
            path.stat().st_size for path in map(index_path, (work / "shards").glob("*-of-*[0-9]")) if path.exists()
        )
    if name != "train":
        assert main(arguments) == 0
