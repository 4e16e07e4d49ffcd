"""A folder has one owner: a second process is refused in one line, and the lock of a dead one is free."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines.building.adopt import adopt_shards
from pipelines.building.build import build
from pipelines.building.check import check_shards, quarantine
from pipelines.building.options import BuildOptions
from pipelines.building.sources import Source
from pipelines.errors import UserError
from pipelines.shards.dataset import DatasetInfo
from pipelines.system import lock
from pipelines.system.lock import LOCK_FILE, Owner, owned
from tests.helpers import faults
from tests.helpers.programs import environment

HOLD = """
import sys, time
from pathlib import Path
from pipelines.system.lock import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def start_owner(folder: Path, seconds: float = 60) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)], env=environment(), stdout=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdout.readline() == b"held\n"
    return process


def no_flock(number: int) -> Callable[..., None]:
    """A file system without locks, such as NFS without its lock service."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [None, errno.ENOLCK, errno.ENOTSUP])
def test_a_second_process_is_refused_and_a_killed_one_is_replaced(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if number:
        monkeypatch.setattr(fcntl, "flock", no_flock(number))
    process = start_owner(tmp_path)
    pattern = rf": in use by process {process.pid} on \S+ since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC; "
    with pytest.raises(UserError, match=pattern), owned(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with owned(tmp_path):
        assert Owner.read(tmp_path / LOCK_FILE) == Owner.current() or number is None
    assert not list(tmp_path.iterdir())
    assert ("has no locks between machines" in caplog.text) == bool(number)


def test_without_locks_the_lock_of_another_machine_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner("elsewhere", 7, "123", "2026-01-01 00:00:00 UTC", "other")
    (tmp_path / LOCK_FILE).write_text(json.dumps(owner.__dict__))
    monkeypatch.setattr(lock, "_has_local_locks", lambda _: True)
    pattern = r"process 7 on elsewhere since .*; if that process has ended, remove /"
    with pytest.raises(UserError, match=pattern), owned(tmp_path):
        pass
    monkeypatch.undo()
    with owned(tmp_path):  # the kernel says that nobody holds it
        pass


def test_a_process_number_that_is_used_again_is_another_process() -> None:
    assert not Owner.current().is_dead
    assert Owner(Owner.current().host, os.getpid(), "1", "", "").is_dead
    assert not Owner("elsewhere", 1, "1", "", "").is_dead


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_lock_file_without_a_name_is_taken_over(content: bytes, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_bytes(content)
    with owned(tmp_path):
        assert Owner.read(tmp_path / LOCK_FILE)
    assert not (tmp_path / LOCK_FILE).exists()


def test_one_process_may_take_a_lock_twice_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with owned(folder):
        with owned(folder):
            pass
        assert (folder / LOCK_FILE).exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_reported_by_the_work_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with owned(tmp_path / "file"):
        pass
    monkeypatch.setattr(os, "open", no_flock(errno.EROFS))
    with owned(tmp_path):
        pass
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_of_many_processes_one_gets_the_lock(tmp_path: Path) -> None:
    program = HOLD.replace('print("held", flush=True)', 'print("held", flush=True); sys.stdin.read()')
    command = [sys.executable, "-c", program, str(tmp_path), "0"]
    pipe = subprocess.PIPE
    racers = [
        subprocess.Popen(command, env=environment(), stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        for _ in range(6)
    ]
    with ExitStack() as stack:
        for process in racers:
            stack.enter_context(process)
        deadline = time.monotonic() + 60
        while sum(process.poll() is not None for process in racers) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert sorted(process.returncode for process in racers) == [0, 1, 1, 1, 1, 1]


def test_folders_of_shards_and_runs_are_owned(tiny_dataset: Path, tmp_path: Path) -> None:
    data = faults.copy_dataset(tiny_dataset, tmp_path / "shards")
    report = check_shards(data)
    source = Source("", tmp_path, (), {})
    process = start_owner(data)
    actions: list[Callable[[], object]] = [
        lambda: adopt_shards(data),
        lambda: quarantine(report),
        lambda: build(source, data, BuildOptions()),
        lambda: RunDirectory(data).owned().__enter__(),
    ]
    for act in actions:
        with pytest.raises(UserError, match=f"in use by process {process.pid} on"):
            act()
    process.kill()
    process.wait()
    assert adopt_shards(data) == DatasetInfo.load(data)
    assert not (data / LOCK_FILE).exists()


def test_a_data_set_that_changes_during_its_check_is_not_overwritten(tiny_dataset: Path, tmp_path: Path) -> None:
    data = faults.copy_dataset(tiny_dataset, tmp_path / "shards")
    report = check_shards(data)
    info = DatasetInfo.load(data)
    train = info.splits["train"].model_copy(update={"quarantine": [1]})
    (data / "dataset.json").unlink()
    info.model_copy(update={"splits": {**info.splits, "train": train}}).save(data)
    with pytest.raises(UserError, match="changed during the check; repeat the same command"):
        quarantine(report)
    assert DatasetInfo.load(data).splits["train"].quarantine == [1]


def test_a_run_that_begins_while_another_one_prepares_is_not_overwritten(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.check_new()
    run.begin(Recipe(), {})
    with pytest.raises(UserError, match="another run has just begun here; choose another output folder"):
        run.check_new()
