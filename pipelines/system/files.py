"""Paths as users write them, and files that are whole or absent: written under a temporary name, synced, renamed."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipelines.errors import UserError

# What file systems say that cannot sync a file or a directory (vboxsf, old CIFS, some FUSE). Not a failed write.
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_MOST_BYTES = 255  # of a file name


def user_path(text: str | Path) -> Path:
    """Reads a path that a user wrote: ~ and ~NAME at its start are home folders, also where no shell replaced them.

    Raises:
        UserError: it is empty, or the home folder is not known.
    """
    if not str(text):
        raise UserError("a path is empty", remedy="name a file or a folder")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError("this home folder is not known", path=text, remedy="write the whole path") from None


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`. After the block it is fsynced and renamed to `path`.

    If the block raises, the temporary file is removed and `path` stays as it was. An `OSError` names `path`.
    """
    with _in_place(path) as temporary, open(temporary, "wb") as stream:
        yield stream
        stream.flush()
        _fsync(stream.fileno())


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a small file, whole or not at all; see `atomic_writer`."""
    with atomic_writer(path) as stream:
        stream.write(data)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Makes a temporary folder beside `path`. After the block its files are synced and it is renamed to `path`.

    `path` must not exist, or be an empty folder. If the block raises, nothing is left. An `OSError` names `path`, or
    the file inside `path`.
    """
    with _in_place(path) as temporary:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)


@contextmanager
def atomic_path(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """A temporary name beside `path`, for libraries that write a file by its name and look at the suffix.

    After the block the file is synced and renamed to `path`. If the block raises, `path` is left as it was.
    """
    with _in_place(path, suffix) as temporary:
        yield temporary
        sync(temporary)


@contextmanager
def _in_place(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """A temporary name beside `path`. What the block creates there is renamed to `path`, or removed after an error."""
    temporary = _temporary(path, suffix)
    try:
        yield temporary
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        _name(error, temporary, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # does nothing for a file
        with suppress(OSError):
            temporary.unlink()


def _temporary(path: Path, suffix: str) -> Path:
    """A hidden name beside `path`. A long name is cut, so that it stays a valid one."""
    end = f".{os.getpid()}{suffix}"
    name = os.fsdecode(os.fsencode(path.name)[: _MOST_BYTES - 1 - len(end)])
    return path.with_name(f".{name}{end}")


def _name(error: OSError, temporary: Path, path: Path) -> None:
    """Puts the user's name for the file into an error. The system names no file when a write fails."""
    if error.filename is None and error.errno is not None:
        error.filename = str(path)
    elif str(error.filename).startswith(str(temporary)):
        error.filename = str(path) + str(error.filename).removeprefix(str(temporary))


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that killed processes left in a folder. No other process may be writing there."""
    for leftover in (*folder.glob(".*.[0-9]*.tmp"), *folder.glob(".*.[0-9]*.keras")):
        with suppress(OSError):  # in a read-only folder: the caller's next write reports it
            leftover.unlink()


def sync(path: Path) -> None:
    """Calls fsync for a file or a directory, if its file system can. A new name is kept only after its directory is."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():  # a directory that may be written, but not listed
            return
        raise
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def cache_directory() -> Path:
    """The user's cache folder: $XDG_CACHE_HOME/kimagenet, else ~/.cache/kimagenet. It may not exist yet.

    For a user without a home folder (a number, as in `docker run --user`): a private folder in the temporary one.

    Raises:
        UserError: the private folder belongs to another user.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    if not cache and os.path.expanduser("~") == "~":
        return _private_folder(Path(tempfile.gettempdir()) / f"kimagenet-{os.getuid()}")
    return user_path(cache or "~/.cache") / "kimagenet"


def _private_folder(folder: Path) -> Path:
    """Makes a folder that only this user can write. The cache contains code, so another user must not own it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        remedy = "set XDG_CACHE_HOME to a folder of yours"
        raise UserError("not a private folder of this user, so it is no cache", path=folder, remedy=remedy)
    return folder
