"""The counts, limits and views of `bench storage`, with a fake sysfs and a fake program; everything is restored."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.storage import disks, slow_fs
from bench.storage.cases import CASES
from bench.storage.counts import Counts, parse_counts
from bench.storage.disks import Disk
from pipelines import UserError

BY_NAME = {case.name: case for case in CASES}


# ---- Counts


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12 requests 3400 bytes\n", Counts(12, 3400)),
        ("  680379    50664 17382322   340506   702378  1210630 125560536 618284 0 207448 1079803", None),
        ("7 0 16 1 0 0 0 0 0 1 1 0 0 0 0 0 0\n", Counts(7, 8192)),
    ],
)
def test_counts_of_views_and_disks(text: str, found: Counts | None) -> None:
    assert parse_counts(text) == (found or Counts(680379, 17382322 * 512))
    assert parse_counts(text) - Counts(1, 1) == Counts(
        parse_counts(text).requests - 1, parse_counts(text).num_bytes - 1
    )


@pytest.mark.parametrize("text", ["", "7 0 16", "a requests b bytes", "7 reads 8 bytes"])
def test_other_texts_are_no_counts(text: str) -> None:
    with pytest.raises(ValueError, match=r"invalid literal|not counts"):
        parse_counts(text)


# ---- Disks: a fake sysfs


@pytest.fixture(params=["version 1", "version 2"])
def system(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sysfs with one disk and a partition on it, and control groups."""
    whole = tmp_path / "devices" / "vda"
    (whole / "queue").mkdir(parents=True)
    (whole / "vda1").mkdir()
    (whole / "dev").write_text("254:0\n")
    (whole / "queue" / "read_ahead_kb").write_text("8192\n")
    (whole / "stat").write_text("7 0 16 1 0 0 0 0 0 1 1\n")
    (whole / "vda1" / "partition").write_text("1\n")
    (tmp_path / "dev" / "block").mkdir(parents=True)
    (tmp_path / "dev" / "block" / "254:0").symlink_to(whole)
    (tmp_path / "dev" / "block" / "254:1").symlink_to(whole / "vda1")
    groups = tmp_path / "fs" / "cgroup"
    if request.param == "version 1":
        (groups / "blkio").mkdir(parents=True)
        (groups / "blkio" / "blkio.throttle.read_bps_device").touch()
    else:
        groups.mkdir(parents=True)
        (groups / "cgroup.controllers").write_text("cpu io memory\n")
        (groups / "cgroup.subtree_control").write_text("cpu\n")
    monkeypatch.setattr(disks, "_remove", shutil.rmtree)  # the kernel removes the files of a group with it
    return tmp_path


def the_disk(system: Path) -> Disk:
    disk = disks.disk_of_number("254:0", system)
    assert disk is not None
    return disk


def group_of(system: Path) -> Path:
    (found,) = [path for path in system.rglob("kimagenet-bench-*") if path.is_dir()]
    return found


def test_the_disk_of_a_partition_is_the_whole_disk(system: Path) -> None:
    disk = disks.disk_of_number("254:1", system)
    assert disk == the_disk(system)
    assert (disk.number, disk.name) == ("254:0", "vda")
    assert disks.disk_of_number("9:9", system) is None


def test_limits_are_set_and_removed(system: Path) -> None:
    disk = the_disk(system)
    with disks.limited(disk, BY_NAME["hard-disk"], system) as admit:
        admit(4321)
        group = group_of(system)
        assert (group / "cgroup.procs").read_text() == "4321\n"
        texts = {
            path.name: path.read_text() for path in group.iterdir() if "throttle" in path.name or "io" in path.name
        }
        assert texts in (
            {
                "blkio.throttle.read_bps_device": "254:0 150000000",
                "blkio.throttle.read_iops_device": "254:0 150",
            },
            {"io.max": "254:0 rbps=150000000 riops=150"},
        )
        assert disk.read_ahead.read_text().strip() == "8192"
    with disks.limited(disk, BY_NAME["cloud-volume"], system):
        assert disk.read_ahead.read_text() == "128\n"
    assert disk.read_ahead.read_text() == "8192\n"
    assert list(system.rglob("kimagenet-bench-*")) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_everything_is_restored_after_an_error(system: Path, error: type[BaseException]) -> None:
    disk = the_disk(system)
    seen: list[str] = []

    def fail() -> None:
        with disks.limited(disk, BY_NAME["cloud-volume"], system):
            seen.append(disk.read_ahead.read_text())
            raise error

    with pytest.raises(error):
        fail()
    assert seen == ["128\n"]
    assert disk.read_ahead.read_text() == "8192\n"
    assert list(system.rglob("kimagenet-bench-*")) == []
    control = system / "fs" / "cgroup" / "cgroup.subtree_control"
    assert not control.exists() or control.read_text() == "-io\n"  # the kernel takes it as a command


def test_a_limit_that_is_refused_leaves_nothing_behind(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = the_disk(system)
    real = disks.write_line

    def refuse(path: Path, text: str) -> None:
        if text == "128":
            raise PermissionError(path)
        real(path, text)

    monkeypatch.setattr(disks, "write_line", refuse)
    with pytest.raises(PermissionError), disks.limited(disk, BY_NAME["cloud-volume"], system):
        pytest.fail("the block runs without its limits")
    assert disk.read_ahead.read_text() == "8192\n"
    assert list(system.rglob("kimagenet-bench-*")) == []


def test_why_a_disk_cannot_be_limited(system: Path, tmp_path: Path) -> None:
    disk = the_disk(system)
    assert disks.why_no_limit(disk, system, user=0) == ""
    assert "sudo" in disks.why_no_limit(disk, system, user=1000)
    assert "copy the data set to a local disk" in disks.why_no_limit(None, system, user=0)
    shutil.rmtree(system / "fs")
    assert "no control groups" in disks.why_no_limit(disk, system, user=0)


# ---- Views


def test_why_no_view_can_be_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_fs.shutil, "which", lambda program: None if program == "gcc" else program)
    assert slow_fs.why_no_view() == f"gcc not found; install with {slow_fs._PACKAGES}"
    monkeypatch.setattr(slow_fs.shutil, "which", lambda program: program)
    done = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(slow_fs.subprocess, "run", lambda *_, **__: done)
    assert "headers of libfuse3" in slow_fs.why_no_view()
    done.returncode = 0
    assert "cannot be opened" in slow_fs.why_no_view(tmp_path / "fuse")
    (tmp_path / "fuse").touch()
    assert slow_fs.why_no_view(tmp_path / "fuse") == ""


def program(folder: Path, text: str) -> Path:
    """A program in the place of slow_fs."""
    path = folder / "slow_fs"
    path.write_text(f"#!{sys.executable}\nimport pathlib, sys, time\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_view_ends_with_its_block(tmp_path: Path) -> None:
    view = tmp_path / "view"
    view.mkdir()
    fake = program(
        tmp_path,
        "pathlib.Path(sys.argv[3], '.stats').write_text(' '.join(sys.argv[1:3]))\ntime.sleep(99)",
    )
    seen: list[str] = []

    def interrupted() -> None:
        with slow_fs.mounted(fake, tmp_path, 2.5, view):
            seen.append((view / ".stats").read_text())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == [f"{tmp_path} 2500"]


def test_a_view_that_does_not_come_says_why(tmp_path: Path) -> None:
    fake = program(tmp_path, "sys.exit('fuse: no permission')")
    view = slow_fs.mounted(fake, tmp_path, 2.5, tmp_path / "view")
    with pytest.raises(UserError, match="cannot be mounted: fuse: no permission"), view:
        pytest.fail("the block runs without its view")
