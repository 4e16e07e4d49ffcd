"""Locks that end with their process: one process at a time owns a folder.

The kernel decides (`flock`), so the lock of a process that was killed is free at once, and process numbers of other
containers do not matter. NFS passes these locks to its server, so they work between machines. Some mounts keep them on
one machine (`nolock`, `local_lock`) or have none. There the content of the lock file decides, with a warning: the lock
of a dead process of this machine is taken over, that of another machine has to be removed by hand.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from pipelines.errors import UserError
from pipelines.system.reading import read_file

LOCK_FILE = ".lock"

_PROCESS = uuid.uuid4().hex
_LOCAL_LOCKS = {"nolock", "local_lock=all", "local_lock=flock"}  # mount options of NFS

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock, as the lock file names it.

    Attributes:
        host: its machine.
        pid: its number there.
        started: when it started, in ticks of /proc/PID/stat; "" if unknown.
        since: when it took the lock.
        process: a text that no other process has.
    """

    host: str
    pid: int
    started: str
    since: str
    process: str

    @classmethod
    def current(cls) -> "Owner":
        """This process, now."""
        since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(socket.gethostname(), os.getpid(), _start_of(os.getpid()), since, _PROCESS)

    @classmethod
    def read(cls, path: Path) -> "Owner | None":
        """The owner that a lock file names; None if it names none."""
        try:
            return cls(**json.loads(read_file(path)))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def is_dead(self) -> bool:
        """Whether it is certain that the process has ended."""
        return self.host == socket.gethostname() and _start_of(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@contextmanager
def owned(folder: Path, setting: str = "") -> Iterator[None]:
    """Within it, this process owns the folder; it may take the lock several times.

    The lock is the file `.lock` in the folder. A missing folder is made, and removed afterwards if it is empty. If the
    lock file cannot be written, there is no lock: the work in the folder will report why.

    Args:
        folder: the folder.
        setting: the argument that names another folder; see `UserError`.

    Raises:
        UserError: another process owns the folder.
    """
    path = folder / LOCK_FILE
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = None
    try:
        descriptor = _take(path, setting)
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)
        with suppress(OSError):
            for parent in made:
                parent.rmdir()


def try_lock(path: Path) -> int | None:
    """Opens and locks a file, and creates it if it is missing.

    Returns:
        The descriptor that holds the lock until it is closed; None if another one holds it.

    Raises:
        OSError: the file cannot be opened, or the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    return descriptor


def _take(path: Path, setting: str) -> int | None:
    """Takes a lock; returns its descriptor, or None if this process has it already or it cannot be written."""
    while True:
        is_new = not path.exists()
        try:
            if _has_local_locks(path.parent):
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            descriptor = try_lock(path)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                return _take_by_name(path, is_new, setting)
            return None  # the folder cannot be written
        if descriptor is None:
            owner = Owner.read(path)
            if owner is not None and owner.process == _PROCESS:
                return None
            raise _in_use(path, owner, setting)
        if _is_same_file(descriptor, path):  # otherwise its owner has just removed it
            _write_owner(descriptor)
            return descriptor
        os.close(descriptor)


def _take_by_name(path: Path, is_new: bool, setting: str) -> int | None:
    """Takes a lock without the kernel's help: the process that the file names has it."""
    owner = None if is_new else Owner.read(path)
    if owner is not None and owner.process == _PROCESS:
        return None
    _log.warning("%s: this file system has no locks between machines; the file's content decides", path)
    if owner is not None and owner.is_dead:
        path.unlink(missing_ok=True)
    elif path.exists() and not (is_new and path.stat().st_size == 0):
        raise _in_use(path, owner, setting, f"if that process has ended, remove {path}")
    path.unlink(missing_ok=True)  # `try_lock` has made an empty one
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        raise _in_use(path, Owner.read(path), setting) from None
    _write_owner(descriptor)
    return descriptor


def _write_owner(descriptor: int) -> None:
    with suppress(OSError):  # on a full disk the lock holds, but names nobody
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(Owner.current())).encode() + b"\n", 0)


def _in_use(path: Path, owner: Owner | None, setting: str, remedy: str = "") -> UserError:
    another = ", or choose another folder" if setting else ""
    remedy = remedy or f"wait until it ends{another}"
    return UserError(f"in use by {owner or 'another process'}", path=path.parent, remedy=remedy, setting=setting)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _start_of(pid: int) -> str:
    """When a process started; "" if it does not exist, or its start cannot be known."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _has_local_locks(folder: Path) -> bool:
    """Whether the folder is on a network mount whose locks other machines do not see."""
    try:
        device = os.stat(folder).st_dev
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    return any(number == fields[2] and _LOCAL_LOCKS & {*fields[-1].split(",")} for fields in map(str.split, mounts))
