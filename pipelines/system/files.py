"""Files that are whole or absent: written under a temporary name, synced, renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`. After the block it is fsynced and renamed to `path`.

    If the block raises, the temporary file is removed and `path` stays as it was. An `OSError` names `path`.
    """
    with _in_place(path) as temporary, open(temporary, "wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
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
    """Calls fsync for a file or a directory. POSIX keeps a new name only after its directory is synced."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_directory() -> Path:
    """The user's cache folder: $XDG_CACHE_HOME/kimagenet, else ~/.cache/kimagenet. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kimagenet"
