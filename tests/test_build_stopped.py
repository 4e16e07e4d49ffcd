"""A stopped build keeps its finished shards, and continues to the same bytes as a build that was not stopped."""

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import ShardSet, UserError
from pipelines.building import shard_writer
from pipelines.building.adopt import adopt_shards
from pipelines.building.build import build
from pipelines.building.check import check_shards
from pipelines.building.options import BuildOptions
from pipelines.building.sources import open_source
from pipelines.shards import records
from pipelines.shards.dataset import DatasetInfo, shard_name
from tests.helpers.builds import (
    OPTIONS,
    build_and_stop,
    build_with_kills,
    contents,
    replace_with_the_same_size_and_time,
    stop_before_clean_up,
)
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
def test_a_full_disk_leaves_only_whole_shards_and_the_next_run_continues(
    monkeypatch: pytest.MonkeyPatch, images: Path, built: Path, tmp_path: Path, record: int, whole: list[int]
) -> None:
    output = tmp_path / "shards"
    with monkeypatch.context() as patch:
        fail_at(patch, record)
        with pytest.raises(
            UserError,
            match=r"shards/\w+-\d+-of-\d+: No space left on device; .* the same command; it keeps the finished shards",
        ):
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


# The build is killed when this file appears: a part of a shard, the first finished shard, the second split.
MOMENTS = (".train-*.tmp", ".build/train-*.json", "validation-*")


def test_a_build_that_is_killed_again_and_again_gives_the_same_bytes(images: Path, built: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    flags = ["--train-shards=2", "--validation-shards=2", "--workers=2"]
    command = [sys.executable, "-m", "tools.build_shards", "--source", str(images), "--output", str(output), *flags]
    build_with_kills(command, output, MOMENTS)
    assert contents(output) == contents(built)


def test_workers_end_with_their_parent() -> None:
    """After SIGKILL of the parent, the shared pipe is closed as soon as the last worker has ended."""
    process = subprocess.Popen(command("wait_in_workers"), env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def test_a_shard_damaged_before_the_repeat_is_written_again(
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
    build_in_part(monkeypatch, images, tmp_path / "shards", OPTIONS)
    with pytest.raises(UserError, match="unfinished build of other images or options"):
        build(open_source(images), tmp_path / "shards", BuildOptions(2, 2, seed=5))


def test_an_unfinished_build_keeps_its_number_of_shards(
    monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path
) -> None:
    """An earlier version chose other numbers for the same command, and wrote them into its plan as here."""
    earlier = BuildOptions(1024, 128)
    build_in_part(monkeypatch, images, tmp_path / "shards", earlier)
    build_and_stop(monkeypatch, stop_before_clean_up, images, tmp_path / "shards", BuildOptions())
    build(open_source(images), tmp_path / "shards", BuildOptions())
    build(open_source(images), tmp_path / "expected", earlier)
    assert contents(tmp_path / "shards") == contents(tmp_path / "expected")


def test_a_build_of_an_earlier_release_continues_with_its_shuffle(
    monkeypatch: pytest.MonkeyPatch, images: Path, built: Path, tmp_path: Path
) -> None:
    """Before plan.json had the version of the shuffle, it was that of NumPy's generator."""
    earlier, stopped = tmp_path / "earlier", tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.building.build._SHUFFLE", 1)
        build(open_source(images), earlier, OPTIONS)
        fail_at(patch, 70)
        with pytest.raises(UserError):
            build(open_source(images), stopped, OPTIONS)
    plan = stopped / ".build" / "plan.json"
    known = json.loads(plan.read_text())
    assert known.pop("shuffle") == 1
    plan.write_text(json.dumps(known))
    build(open_source(images), stopped, OPTIONS)
    assert contents(stopped) == contents(earlier)
    first = shard_name("train", 0, 2)
    assert (earlier / first).read_bytes() != (built / first).read_bytes()
    assert DatasetInfo.load(earlier).build["shuffle"] == 1
    assert DatasetInfo.load(built).build["shuffle"] == 2


def test_a_build_of_a_later_release_is_not_continued(
    monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path
) -> None:
    build_in_part(monkeypatch, images, tmp_path / "shards", OPTIONS)
    plan = tmp_path / "shards" / ".build" / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "shuffle": 3}))
    with pytest.raises(UserError, match="unfinished build of other images or options"):
        build(open_source(images), tmp_path / "shards", OPTIONS)


def build_in_part(monkeypatch: pytest.MonkeyPatch, images: Path, output: Path, options: BuildOptions) -> None:
    """A build that ends in the middle."""
    with monkeypatch.context() as patch:
        fail_at(patch, 70)
        with pytest.raises(UserError):
            build(open_source(images), output, options)


def test_a_repeated_build_without_rejected_files_removes_their_list(
    monkeypatch: pytest.MonkeyPatch, images: Path, built: Path, tmp_path: Path
) -> None:
    """The images were repaired after the build had been stopped."""
    source, output = shutil.copytree(images, tmp_path / "source"), tmp_path / "shards"
    path = next(iter(sorted((source / "train").rglob("*.JPEG"))))
    good = path.read_bytes()
    path.write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.building.build.DatasetInfo.save", stop_with_a_full_disk)
        with pytest.raises(UserError, match="No space left"):
            build(open_source(source), output, OPTIONS)
    assert (output / "rejected.jsonl").exists()
    path.write_bytes(good)
    assert build(open_source(source), output, OPTIONS).rejected == ()
    assert contents(output) == contents(built)


def stop_with_a_full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_unfinished_build_is_not_taken_for_a_data_set(
    monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path
) -> None:
    """Its training shards may all be there."""
    with monkeypatch.context() as patch:
        fail_at(patch, 140)
        with pytest.raises(UserError):
            build(open_source(images), tmp_path, OPTIONS)
    assert (tmp_path / shard_name("train", 1, 2)).exists()
    for use in (adopt_shards, check_shards):
        with pytest.raises(UserError, match="the folder has an unfinished build; repeat the command of that build"):
            use(tmp_path)


def test_nothing_is_overwritten(images: Path, built: Path, tmp_path: Path) -> None:
    before = contents(built)
    with pytest.raises(UserError, match="the folder already has a data set"):
        build(open_source(images), built, OPTIONS)
    assert contents(built) == before
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="the folder is not empty"):
        build(open_source(images), tmp_path, OPTIONS)
    assert contents(tmp_path) == {"mine.txt": b""}


def stop_after(monkeypatch: pytest.MonkeyPatch, source: Path, output: Path, record: int = 100) -> None:
    """A build that stops after its first training shard."""
    with monkeypatch.context() as patch:
        fail_at(patch, record)
        with pytest.raises(UserError):
            build(open_source(source), output, OPTIONS)
    assert (output / shard_name("train", 0, 2)).exists()
    assert not (output / shard_name("train", 1, 2)).exists()


def rewrite_all(source: Path) -> None:
    for path in sorted(source.rglob("*.JPEG")):
        path.write_bytes(path.read_bytes() + b"changed")


def damage_all(source: Path) -> None:
    """Only one image of each class stays good."""
    for number, path in enumerate(sorted(source.rglob("*.JPEG"))):
        if number % 2:
            path.write_bytes(b"damaged")


CHANGES = (rewrite_all, replace_with_the_same_size_and_time, damage_all)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_shards_of_changed_images_are_written_again(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    images: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
) -> None:
    source, output = shutil.copytree(images, tmp_path / "source"), tmp_path / "shards"
    stop_after(monkeypatch, source, output)
    change(source)
    build(open_source(source), output, OPTIONS)
    assert caplog.messages == [f"{output}: 1 finished shard is written again, because source files changed"]
    build(open_source(source), tmp_path / "expected", OPTIONS)
    assert contents(output) == contents(tmp_path / "expected")


def test_an_image_that_is_gone_is_another_source(monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path) -> None:
    source, output = shutil.copytree(images, tmp_path / "source"), tmp_path / "shards"
    stop_after(monkeypatch, source, output)
    next(iter(sorted(source.rglob("*.JPEG")))).unlink()
    with pytest.raises(UserError, match="unfinished build of other images or options"):
        build(open_source(source), output, OPTIONS)


def test_unchanged_images_are_not_read_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, images: Path, built: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    stop_after(monkeypatch, images, output)
    before = (output / shard_name("train", 0, 2)).stat().st_mtime_ns
    build(open_source(images), output, OPTIONS)
    assert caplog.messages == []
    assert (output / shard_name("train", 0, 2)).stat().st_mtime_ns == before
    assert contents(output) == contents(built)


def test_a_finished_shard_with_a_damaged_index_is_written_again(
    monkeypatch: pytest.MonkeyPatch, images: Path, built: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    stop_after(monkeypatch, images, output)
    (output / f"{shard_name('train', 0, 2)}.idx").write_bytes(b"0 7\n")
    build(open_source(images), output, OPTIONS)
    assert contents(output) == contents(built)
