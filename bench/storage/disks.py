"""The disk below a folder, and limits for the processes that read it: bytes/s, requests/s and read-ahead. For root.

The limits are those of control groups: `io.max` of version 2, `blkio.throttle` of version 1.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.storage.cases import Case

_SYSTEM = Path("/sys")
_LEAVE_SECONDS = 5.0  # until the last process has left a control group
_NO_DISK = 0  # the major number of file systems without a disk: overlay, tmpfs, NFS, btrfs


@dataclass(frozen=True)
class Disk:
    """A whole disk.

    Attributes:
        number: "MAJOR:MINOR".
        name: "vda".
        read_ahead: the file with its read-ahead, kB.
        counter: the file with its counts.
    """

    number: str
    name: str
    read_ahead: Path
    counter: Path


def disk_of(folder: Path, system: Path = _SYSTEM) -> Disk | None:
    """The disk that a folder is on; None if its file system has none, as overlay, tmpfs and NFS.

    Args:
        folder: any folder.
        system: where sysfs is mounted.
    """
    device = os.stat(folder).st_dev
    if os.major(device) == _NO_DISK:
        return None
    return disk_of_number(f"{os.major(device)}:{os.minor(device)}", system)


def disk_of_number(number: str, system: Path = _SYSTEM) -> Disk | None:
    """The disk of a block device; of a partition, the disk that it is a part of."""
    place = system / "dev" / "block" / number
    if not place.exists():
        return None
    whole = place.resolve()
    if (whole / "partition").exists():
        whole = whole.parent
    number = (whole / "dev").read_text().strip()
    return Disk(number, whole.name, whole / "queue" / "read_ahead_kb", whole / "stat")


def why_no_limit(disk: Disk | None, system: Path = _SYSTEM, user: int | None = None) -> str:
    """Why a disk cannot be limited here, with the remedy; "" if it can.

    Args:
        disk: of the data set.
        system: where sysfs is mounted.
        user: the user's number; None: of this process.
    """
    if disk is None:
        return "the data set's file system has no disk; copy the data set to a local disk"
    if (os.geteuid() if user is None else user) != 0:
        return "only root may limit a disk; run the command with sudo"
    if not os.access(disk.read_ahead, os.W_OK):
        return f"{disk.read_ahead} cannot be written; run the command outside the container"
    root = _root(system)
    if root is None:
        return "no control groups with io.max or blkio.throttle are mounted; run the command outside the container"
    if not os.access(root, os.W_OK):
        return f"{root} is read-only; run the command outside the container"
    return ""


@contextmanager
def limited(disk: Disk, case: Case, system: Path = _SYSTEM) -> Iterator[Callable[[int], None]]:
    """Within it, processes can be limited. Afterwards the control group is removed and the read-ahead is as before.

    The read-ahead is that of the disk, for every process on the machine.

    Args:
        disk: to limit.
        case: its limits.
        system: where sysfs is mounted.

    Returns:
        A function that puts a process, by its number, under the limits.
    """
    root = _root(system)
    assert root is not None  # `why_no_limit` was asked
    with ExitStack() as stack:
        group = stack.enter_context(_group(root, f"kimagenet-bench-{os.getpid()}"))
        for name, line in _limit_lines(root, disk, case).items():
            (group / name).write_text(line)
        if case.read_ahead_kb is not None:
            stack.enter_context(changed(disk.read_ahead, str(case.read_ahead_kb)))
        yield lambda process: write_line(group / "cgroup.procs", str(process))


@contextmanager
def changed(path: Path, value: str) -> Iterator[None]:
    """Within it, a file of sysfs has another value; afterwards the one before, whatever happened."""
    before = path.read_text()
    try:
        write_line(path, value)
        yield
    finally:
        write_line(path, before.strip())


def write_line(path: Path, text: str) -> None:
    """Writes one value to a file of the kernel, in a single write."""
    path.write_text(text + "\n")


def _root(system: Path) -> Path | None:
    """The control group below which limits can be set."""
    unified, legacy = system / "fs" / "cgroup", system / "fs" / "cgroup" / "blkio"
    if (legacy / "blkio.throttle.read_bps_device").exists():
        return legacy
    controllers = unified / "cgroup.controllers"
    return unified if controllers.exists() and "io" in controllers.read_text().split() else None


def _limit_lines(root: Path, disk: Disk, case: Case) -> dict[str, str]:
    """What is written into the files of a group."""
    if root.name == "blkio":
        return {
            "blkio.throttle.read_bps_device": f"{disk.number} {case.bytes_per_s}",
            "blkio.throttle.read_iops_device": f"{disk.number} {case.requests_per_s}",
        }
    return {"io.max": f"{disk.number} rbps={case.bytes_per_s} riops={case.requests_per_s}"}


@contextmanager
def _group(root: Path, name: str) -> Iterator[Path]:
    """A new control group, removed at the end. In version 2 the controller `io` is switched on for it if it is off."""
    children = root / "cgroup.subtree_control"
    switch = children.exists() and "io" not in children.read_text().split()
    group = root / name
    try:
        if switch:
            write_line(children, "+io")
        group.mkdir()
        yield group
    finally:
        _remove(group)
        if switch:
            with suppress(OSError):  # it could not be switched on
                write_line(children, "-io")


def _remove(group: Path) -> None:
    """Removes a control group as soon as the last process has left it."""
    deadline = time.monotonic() + _LEAVE_SECONDS
    while group.exists():
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
