"""Paths as users write them, and files that are whole or absent: written under a temporary name, synced, renamed."""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipelines.errors import UserError
from pipelines.system import streams
from pipelines.system.reading import NotRegular
from pipelines.system.streams import is_stream

# What file systems say that cannot sync a file or a directory (vboxsf, old CIFS, some FUSE). Not a failed write.
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_MOST_BYTES = 255  # of a file name
_INSIDE = ".kimagenet-unfinished."  # how the temporary folder inside an empty folder begins


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
    """Opens a temporary file. After the block it is fsynced and gets the name `path`; see `atomic_path`."""
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        yield stream
        stream.flush()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a small file, whole or not at all; see `atomic_path`."""
    with atomic_writer(path) as stream:
        stream.write(data)


def write_own(path: Path, data: bytes) -> None:
    """Writes a small file of a data set or a run as `write_atomic`. Nobody reads it through a device or a FIFO.

    Raises:
        OSError: it cannot be written, or is no regular file. It has the file's name.
    """
    if is_stream(path):
        raise NotRegular(path)
    write_atomic(path, data)


@contextmanager
def atomic_path(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """A temporary name beside `path`, for libraries that write a file by its name and look at the suffix.

    After the block the file is fsynced and renamed to `path`. If the block raises, the temporary file is removed and
    `path` stays as it was. An `OSError` names `path`. Links stay links: the file they lead to is replaced. Devices,
    FIFOs and streams like /dev/stdout get the content after the block. A file that is a mount point is overwritten.
    """
    if is_stream(path):
        with tempfile.TemporaryDirectory(prefix="kimagenet-") as folder:
            yield (temporary := Path(folder) / f"file{suffix}")
            with _errors_name(temporary, path):
                streams.write_through(temporary, path)
        return
    with _errors_name(path, path):
        mode = stat.S_IMODE(path.stat().st_mode) if _exists(path) else None
    target = _without_links(path)
    temporary = _temporary(target, suffix)
    with _errors_name(temporary, path), _removed(temporary):
        yield temporary
        sync(temporary)
        if mode is not None:
            with suppress(OSError):
                temporary.chmod(mode)
        try:
            os.replace(temporary, target)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            shutil.copyfile(temporary, target)
            sync(target)
        sync(target.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Makes a temporary folder. After the block its files are synced and it is renamed to `path`.

    `path` must not exist, or be an empty folder. An empty folder (a mount point, the working folder, one whose parent
    cannot be written) stays, and gets the content after the block. If the block raises, nothing is left. An `OSError`
    names `path`, or the file inside `path`.
    """
    target = _without_links(path)
    is_there = target.is_dir()
    temporary = target / f"{_INSIDE}{os.getpid()}.tmp" if is_there else _temporary(target, ".tmp")
    with _errors_name(temporary, path), _removed(temporary):
        if is_there:
            for leftover in entries_of_killed(target):
                shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        if is_there:
            _fill(target, temporary)
        else:
            os.replace(temporary, target)
            sync(target.parent)


def entries_of_killed(folder: Path) -> list[Path]:
    """What killed processes left in a folder that `atomic_folder` was to fill."""
    return [path for path in folder.iterdir() if path.name.startswith(_INSIDE) and path.suffix == ".tmp"]


def folders_of_killed(path: Path) -> list[Path]:
    """What `atomic_folder` left beside a new folder in processes that were killed, or writes in one that is not."""
    name, end = re.escape(path.name), re.escape(".tmp")
    beside = path.parent.glob(".*.tmp")
    return sorted(item for item in beside if re.fullmatch(rf"\.{name}\.\d+{end}", item.name) and item.is_dir())


def _fill(folder: Path, temporary: Path) -> None:
    """Moves the content of a temporary folder into the empty folder around it."""
    if any(path != temporary for path in folder.iterdir()):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    moved: list[Path] = []
    try:
        for part in sorted(temporary.iterdir()):
            os.rename(part, folder / part.name)
            moved.append(folder / part.name)
        sync(folder)
    except BaseException:
        for part in moved:
            shutil.rmtree(part, ignore_errors=True)  # does nothing for a file
            with suppress(OSError):
                part.unlink()
        raise


def _without_links(path: Path) -> Path:
    """The file or folder that a link leads to, which may not exist yet."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _exists(path: Path) -> bool:
    """Whether there is such a file. Raises `OSError` if this is not known, as in a loop of links."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _removed(temporary: Path) -> Iterator[None]:
    """Removes a temporary file or folder if it still has this name after the block."""
    try:
        yield
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # does nothing for a file
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def _errors_name(temporary: Path, path: Path) -> Iterator[None]:
    """Puts the user's path into each `OSError` of the block. The system names no file when a write fails."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        elif str(error.filename).startswith(str(temporary)):
            error.filename = str(path) + str(error.filename).removeprefix(str(temporary))
        raise


def _temporary(path: Path, suffix: str) -> Path:
    """A hidden name beside `path`. A long name is cut, so that it stays a valid one."""
    end = f".{os.getpid()}{suffix}"
    name = os.fsdecode(os.fsencode(path.name)[: _MOST_BYTES - 1 - len(end)])
    return path.with_name(f".{name}{end}")


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
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def bytes_text(size: float) -> str:
    """A number of bytes for people: "81 kB"."""
    for unit in ("bytes", "kB", "MB"):
        if round(size) < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:,.0f} GB"


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
