"""Disks that are full or cannot be written: one line of error, no partial files, and the next command succeeds."""

import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from kimagenet import export, train
from kimagenet.commands import build_index, build_shards, check_shards
from pipelines import ShardSet
from pipelines.shards.index import index_path
from tests.helpers import faults, interrupt
from tests.helpers.data import write_tiny_dataset
from tests.helpers.odd_run import OddRun

Main = Callable[[list[str]], int]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Images; shards without other files; shards with a corrupt record, with and without dataset.json."""
    interrupt.write_images(tmp_path)
    interrupt.write_shards(tmp_path)
    for name in ("built", "run", "faulty"):
        (tmp_path / name).mkdir()
    faults.corrupt(ShardSet.open(write_tiny_dataset(tmp_path / "faulty"), "train"), [7])
    shutil.copytree(tmp_path / "faulty", tmp_path / "bare", ignore=shutil.ignore_patterns("*.*"))
    return tmp_path


# The command, the folder it writes to, and its exit code without a fault.
LINES: dict[str, tuple[Main, str, str, int]] = {
    "build": (build_shards.main, "--source={0}/images --output={0}/built --workers=1", "built", 0),
    "index": (build_index.main, "{0}/shards --workers=1", "shards", 0),
    "check": (check_shards.main, "{0}/faulty --quarantine --workers=1", "faulty", 1),
    "check, no dataset.json": (check_shards.main, "{0}/bare --quarantine --workers=1", "bare", 1),
    "check, report": (check_shards.main, "{0}/faulty --json={0}/run/faults.json --workers=1", "run", 1),
    "train": (train.main, "demo --loader=tfdata --dataset-dir={0}/shards --output={0}/run/new --epochs=1", "run", 0),
    "export, savedmodel": (export.main, "{1} --output={0}/run/new --format=savedmodel", "run", 0),
    "export, tflite": (export.main, "{1} --output={0}/run/new --format=tflite", "run", 0),
    "export, onnx": (export.main, "{1} --output={0}/run/new --format=onnx", "run", 0),
}
ROOM = {"train": 600, "export": 100_000}  # bytes on the full disk: enough for the first files, not for all

REASONS = {
    "full": "File too large",
    "read-only": "Read-only file system",
    "no permission": "Permission denied",
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("fault", REASONS)
def test_files_that_cannot_be_written_do_not_exist(
    work: Path, odd_run: OddRun, name: str, fault: str, capsys: pytest.CaptureFixture
) -> None:
    if name == "export, onnx":
        pytest.importorskip("tf2onnx", reason="tf2onnx is not installed: it is in the extra onnx")
    main, line, output, code = LINES[name]
    arguments = [*line.format(work, odd_run.run.path).split()]
    if name == "train":
        assert build_index.main([str(work / "shards"), "--workers=1"]) == 0
        arguments += ["--image-size=32", "--batch-size=50", "--workers=1"]
    before = interrupt.contents(work)
    trouble: dict[str, AbstractContextManager[None]] = {
        "full": faults.full_disk(ROOM.get(name.partition(",")[0], 200)),
        "read-only": faults.read_only(work / output),
        "no permission": faults.no_permission(work / output),
    }
    capsys.readouterr()
    with trouble[fault]:
        assert main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(r"^error: [^\n]*" + re.escape(str(work)) + r"[^\n]+\n\Z", error, re.MULTILINE), error
    assert REASONS[fault] in error
    assert "Traceback" not in error
    after = interrupt.contents(work)
    assert {path: after[path] for path in before} == before
    assert not [path for path in after if path.endswith(".tmp")]
    if name in ("index", "check, no dataset.json"):
        shards = (work / output).glob("*-of-*[0-9]")
        assert all(path.stat().st_size for path in map(index_path, shards) if path.exists())
    else:
        assert after.keys() == before.keys()
    if name != "train" and not (name.startswith("export") and fault != "full"):  # those are slow
        assert main(arguments) == code
