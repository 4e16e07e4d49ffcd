"""A build that is stopped loses nothing that was whole, and goes on to the very bytes of one that was not."""

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import ShardSet, UserError
from pipelines.building import shard_writer
from pipelines.building.build import BuildOptions, build
from pipelines.building.sources import open_source
from pipelines.shards import records
from pipelines.shards.dataset import shard_name
from tests.helpers.builds import OPTIONS, ROOT, contents
from tests.helpers.programs import command, environment


def fail_at(monkeypatch: pytest.MonkeyPatch, record: int) -> None:
    """The disk is full when the builder frames this record."""
    frame = records.frame
    count = 0

    def full(data: bytes) -> bytes:
        nonlocal count
        count += 1
        if count == record:
            raise OSError(errno.ENOSPC, "No space left on device")
        return frame(data)

    monkeypatch.setattr(shard_writer.records, "frame", full)


@pytest.mark.parametrize(("record", "whole"), [(1, []), (70, [0]), (140, [0, 1])])
def test_a_full_disk_leaves_only_whole_shards_and_the_next_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, images: Path, built: Path, tmp_path: Path, record: int, whole: list[int]
) -> None:
    output = tmp_path / "shards"
    with monkeypatch.context() as patch:
        fail_at(patch, record)
        with pytest.raises(UserError, match=r"shards: No space left on device; .* the same command goes on"):
            build(open_source(images), output, OPTIONS)
    expected = {name for i in whole for name in (shard_name("train", i, 2), shard_name("train", i, 2) + ".idx")}
    found = {path.name for path in output.iterdir() if path.is_file()}
    assert found - {"train-sizes.npy"} == expected
    with pytest.raises(UserError, match=r"dataset\.json"):
        ShardSet.open(output, "train")

    before = {name: (output / name).stat().st_mtime_ns for name in expected}
    build(open_source(images), output, OPTIONS)
    assert contents(output) == contents(built)
    assert {name: (output / name).stat().st_mtime_ns for name in expected} == before


# What is there when the build is killed: half a shard; the first whole one; the second split's.
MOMENTS = (".train-*.tmp", ".build/train-*.json", "validation-*")


def test_a_build_that_is_killed_again_and_again_gives_the_same_bytes(images: Path, built: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    flags = ["--train-shards=2", "--validation-shards=2", "--workers=2"]
    command = [sys.executable, "-m", "tools.build_shards", "--source", str(images), "--output", str(output), *flags]
    for moment in MOMENTS:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and not list(output.glob(moment)):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    # 2 if the last kill came too late: the data set was there already.
    assert result.returncode in (0, 2), result.stderr
    assert contents(output) == contents(built)


def test_workers_end_with_their_parent() -> None:
    """However it ends: the pipe that they share is closed once the last of them is gone."""
    process = subprocess.Popen(command("wait_in_workers"), env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def test_a_shard_that_was_damaged_in_between_is_written_again(
    monkeypatch: pytest.MonkeyPatch, images: Path, built: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    with monkeypatch.context() as patch:
        fail_at(patch, 140)
        with pytest.raises(UserError):
            build(open_source(images), output, OPTIONS)
    (output / shard_name("train", 0, 2)).write_bytes(b"cut off")
    (output / f"{shard_name('train', 1, 2)}.idx").unlink()
    build(open_source(images), output, OPTIONS)
    assert contents(output) == contents(built)


def test_an_unfinished_build_of_something_else_is_not_continued(
    monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 70)
        with pytest.raises(UserError):
            build(open_source(images), tmp_path / "shards", OPTIONS)
    with pytest.raises(UserError, match="unfinished build of other images or options"):
        build(open_source(images), tmp_path / "shards", BuildOptions(2, 2, seed=5))


def test_nothing_is_overwritten(images: Path, built: Path, tmp_path: Path) -> None:
    before = contents(built)
    with pytest.raises(UserError, match="holds a data set already"):
        build(open_source(images), built, OPTIONS)
    assert contents(built) == before
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="the folder is not empty"):
        build(open_source(images), tmp_path, OPTIONS)
    assert contents(tmp_path) == {"mine.txt": b""}
