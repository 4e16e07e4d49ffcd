"""Temporary folders for plans, which other processes recognize as in use."""

import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from pipelines.system.lock import LOCK_FILE, try_lock

_PREFIX = "kimagenet-plan-"
_MEMORY = Path("/dev/shm")


class PlanFolder(tempfile.TemporaryDirectory):
    """A temporary folder that other processes recognize as in use, also those of other containers.

    A locked file in it says so. Process numbers would not: containers may share /dev/shm, and number their own.
    """

    def __init__(self, parent: Path) -> None:
        super().__init__(prefix=_PREFIX, dir=parent)
        lock = None
        with suppress(OSError):  # no locks in this file system: other processes will leave the folder
            lock = try_lock(Path(self.name) / "new")
            os.rename(Path(self.name) / "new", Path(self.name) / LOCK_FILE)  # never there without a lock
        self._unlock = weakref.finalize(self, _close, lock)

    def cleanup(self) -> None:
        """Removes the folder."""
        super().cleanup()
        self._unlock()


def make_folder(num_bytes: int) -> PlanFolder:
    """A temporary folder for so many bytes: in memory if that has enough room, else on disk.

    Also removes folders that killed processes have left there.
    """
    is_usable = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)
    parent = _MEMORY if is_usable and has_room(_MEMORY, num_bytes) else Path(tempfile.gettempdir())
    _sweep(parent)
    return PlanFolder(parent)


def has_room(folder: Path, num_bytes: int) -> bool:
    """Whether so many bytes are a small part of the free space."""
    return shutil.disk_usage(folder).free > 4 * num_bytes


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it belongs to another user, has no lock, or its owner has just removed it
            if (lock := _lock_of_dead(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _lock_of_dead(folder: Path) -> int | None:
    """The lock of a folder whose process has ended; None if it may be in use. Raises `OSError` if nobody can tell."""
    path = folder / LOCK_FILE
    if not path.is_file():  # its process is about to lock it, or was killed before it could
        return None
    return try_lock(path)


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
