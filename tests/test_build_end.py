"""The end of a build is one step: a build that is killed there is continued by the same command, or is over."""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kimagenet.commands import build_shards
from pipelines import UserError
from pipelines.building.build import build
from pipelines.building.sources import open_source
from tests.helpers.builds import (
    OPTIONS,
    build_and_stop,
    contents,
    replace_with_the_same_size_and_time,
    stop_before_clean_up,
)


def stop_in_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when the copies of the source are removed."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.building.leftovers.Path.rename", killed)


def stop_after_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when the plan and the notes are removed: the build is over."""

    remove = shutil.rmtree

    def killed(path: Path, **options: bool) -> None:
        if path.name.startswith(".build."):
            raise KeyboardInterrupt
        remove(path, **options)

    monkeypatch.setattr("pipelines.building.leftovers.shutil.rmtree", killed)


ENDS = (stop_before_clean_up, stop_in_clean_up)


@pytest.mark.parametrize("stop", ENDS, ids=lambda stop: stop.__name__)
def test_the_repeated_command_finishes_the_end(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    images: Path,
    built: Path,
    tmp_path: Path,
    stop: Callable[[pytest.MonkeyPatch], None],
) -> None:
    output = tmp_path / "shards"
    command = ["--source", str(images), "--output", str(output), "--workers=1"]
    flags = ["--train-shards=2", "--validation-shards=2"]
    with monkeypatch.context() as patch:
        stop(patch)
        assert build_shards.main([*command, *flags]) == 130
    (output / ".train-00001-of-00002.19103.tmp").write_bytes(b"half")
    assert (output / ".build" / "plan.json").exists()
    capsys.readouterr()
    assert build_shards.main([*command, *flags]) == 0
    streams = capsys.readouterr()
    assert f"{output}: the build was stopped after its last shard; its source is compared again" in streams.err
    assert "written again" not in streams.err
    assert f"{output}: 132 train records in 2 shards; 15 validation records in 1 shard\n" in streams.out
    assert contents(output) == contents(built)
    assert build_shards.main([*command, *flags]) == 2
    assert "already has a data set" in capsys.readouterr().err


@pytest.mark.parametrize("stop", ENDS, ids=lambda stop: stop.__name__)
def test_images_that_changed_after_the_end_are_built_again(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    images: Path,
    tmp_path: Path,
    stop: Callable[[pytest.MonkeyPatch], None],
) -> None:
    source, output = shutil.copytree(images, tmp_path / "source"), tmp_path / "shards"
    build_and_stop(monkeypatch, stop, source, output)
    replace_with_the_same_size_and_time(source)
    build(open_source(source), output, OPTIONS)
    assert f"{output}: 2 finished shards are written again, because source files changed" in caplog.messages
    build(open_source(source), tmp_path / "expected", OPTIONS)
    assert contents(output) == contents(tmp_path / "expected")


def test_other_images_after_the_end_are_refused_and_the_data_set_stays(
    monkeypatch: pytest.MonkeyPatch, images: Path, built: Path, tmp_path: Path
) -> None:
    source, output = shutil.copytree(images, tmp_path / "source"), tmp_path / "shards"
    build_and_stop(monkeypatch, stop_before_clean_up, source, output)
    next(iter(sorted(source.rglob("*.JPEG")))).unlink()
    with pytest.raises(
        UserError,
        match="has a data set of this source, but the source's files, or Pillow's version, have changed since",
    ):
        build(open_source(source), output, OPTIONS)
    assert (output / "dataset.json").read_bytes() == (built / "dataset.json").read_bytes()
    shutil.rmtree(output / ".build")  # as the message says
    assert contents(output) == contents(built)
    with pytest.raises(UserError, match="the folder already has a data set"):
        build(open_source(source), output, OPTIONS)


def test_a_build_that_is_killed_while_its_notes_are_removed_is_over(
    monkeypatch: pytest.MonkeyPatch, images: Path, built: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    build_and_stop(monkeypatch, stop_after_clean_up, images, output)
    assert len(list(output.glob(".build.*.tmp"))) == 1
    with pytest.raises(UserError, match="the folder already has a data set"):
        build(open_source(images), output, OPTIONS)
    assert contents(output) == contents(built)
    assert not list(output.glob(".build*"))


@pytest.mark.parametrize("changed", [False, True])
def test_packed_files_are_compared_before_they_are_unpacked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: Path, tmp_path: Path, changed: bool
) -> None:
    """Their copies are gone, as after a kill in the middle of their removal."""
    tar, output = tmp_path / "source" / "train_images_0.tar.gz", tmp_path / "shards"
    tar.parent.mkdir()
    with tarfile.open(tar, "w:gz") as stream:
        for number, path in enumerate(sorted((images / "train").rglob("*.JPEG"))):
            stream.add(path, f"{number}_{('n01440764', 'n01443537')[number % 2]}.JPEG")
    command = ["--source", str(tar.parent), "--output", str(output), "--workers=1"]
    with monkeypatch.context() as patch:
        stop_before_clean_up(patch)
        assert build_shards.main(command) == 130
    before = (output / "dataset.json").read_bytes()
    shutil.rmtree(output / ".build" / "source")
    if changed:
        os.utime(tar, ns=(0, 0))
    monkeypatch.setattr("pipelines.building.sources.layouts.Layout.read", None)  # nothing is unpacked
    capsys.readouterr()
    assert build_shards.main(command) == (2 if changed else 0)
    told = (
        "the source's files, or Pillow's version, have changed since"
        if changed
        else "stopped after its last shard, and is complete"
    )
    assert told in capsys.readouterr().err
    assert (output / "dataset.json").read_bytes() == before


def test_the_end_is_finished_before_compressed_tars_are_unpacked_again(
    monkeypatch: pytest.MonkeyPatch, images: Path, built: Path, tmp_path: Path
) -> None:
    """With other options it is another command: the rest of the build is removed, and the data set stays."""
    output = shutil.copytree(built, tmp_path / "shards")
    (output / ".build" / "source").mkdir(parents=True)
    (output / ".build" / "source" / "train_images_0.tar").write_bytes(b"1234")
    monkeypatch.setattr("pipelines.building.sources.layouts.Layout.read", None)  # the source is not listed
    assert build_shards.main(["--source", str(images), "--output", str(output), "--seed=7"]) == 2
    assert contents(output) == contents(built)
    assert not (output / ".build").exists()
