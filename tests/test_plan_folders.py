"""Plan folders belong to the process that locks them, also where several containers share /dev/shm."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.loaders.dali.plan_folder import PlanFolder, _sweep
from pipelines.system.lock import LOCK_FILE
from tests.helpers.programs import environment

HOLD = """
import sys, time
from pathlib import Path
from pipelines.loaders.dali.plan_folder import PlanFolder
folder = PlanFolder(Path(sys.argv[1]))
print(folder.name, flush=True)
time.sleep(60)
"""


def start_owner(parent: Path, *wrapper: str) -> tuple[subprocess.Popen, Path]:
    command = [*wrapper, sys.executable, "-c", HOLD, str(parent)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_the_folder_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    process, folder = start_owner(tmp_path)
    _sweep(tmp_path)
    assert folder.is_dir()
    process.send_signal(signal.SIGKILL)
    process.wait()
    _sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_folder_of_another_container_stays(tmp_path: Path) -> None:
    """A process of another PID namespace has a number that belongs to nobody or to another process here."""
    unshare = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not allow PID namespaces")
    process, folder = start_owner(tmp_path, *unshare)
    _sweep(tmp_path)
    assert folder.is_dir()
    process.kill()
    process.wait()


def test_own_folders_stay_and_are_removed_without_leaving_a_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    folders = [PlanFolder(tmp_path) for _ in range(3)]
    _sweep(tmp_path)
    assert all(Path(folder.name, LOCK_FILE).exists() for folder in folders)
    for folder in folders:
        folder.cleanup()
    assert len(os.listdir("/proc/self/fd")) == before
    with PlanFolder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_folder_that_nobody_refers_to_is_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    folder = PlanFolder(tmp_path)
    del folder
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_folders_of_other_programs_and_folders_without_a_lock_stay(tmp_path: Path) -> None:
    for name in ("kimagenet-plan-new", "kimagenet-other"):
        (tmp_path / name).mkdir()
    (tmp_path / "kimagenet-plan-file").touch()
    _sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
