"""The page cache: how much of a file is in memory. Drops a file's pages, or reads it into memory."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_LIBC = ctypes.CDLL(None, use_errno=True)
_PIECE = 1 << 22  # bytes of one read


def drop_pages(path: Path) -> None:
    """Asks the kernel to drop a file from memory.

    It keeps pages that are mapped by a process or not yet written, and all pages of a file system in memory;
    `share_in_memory` says what is left.

    Raises:
        OSError: the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_pages(path: Path) -> None:
    """Reads a file from its first byte to its last, so that it is in memory if it fits.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb", buffering=0) as stream:
        while stream.read(_PIECE):
            pass


def share_in_memory(paths: Iterable[Path]) -> float | None:
    """The share of the files' pages that are in memory, in [0, 1].

    Returns:
        None if the kernel does not tell: it answers only for files that this user owns or may write.

    Raises:
        OSError: a file cannot be read.
    """
    total = resident = 0
    for path in paths:
        if not _may_ask(path):
            return None
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if not size:
                continue
            total += -(-size // mmap.PAGESIZE)
            with mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) as mapped:
                resident += count_resident(mapped)
    return resident / total if total else None


def count_resident(mapped: mmap.mmap) -> int:
    """The number of pages of a mapping that are in memory. Reads nothing.

    Raises:
        OSError: the kernel does not say it.
    """
    flags = np.zeros(-(-len(mapped) // mmap.PAGESIZE), np.uint8)
    start = np.frombuffer(mapped, np.uint8).ctypes.data  # the array is gone before the mapping is closed
    arguments = ctypes.c_void_p(start), ctypes.c_size_t(len(mapped)), ctypes.c_void_p(flags.ctypes.data)
    if _LIBC.mincore(*arguments):
        raise OSError(ctypes.get_errno(), "mincore")
    return int(np.count_nonzero(flags & 1))


def _may_ask(path: Path) -> bool:
    """Whether the kernel tells the truth: for other files it says that every page is in memory (since Linux 5.2)."""
    user = os.geteuid()
    return user == 0 or os.stat(path).st_uid == user or os.access(path, os.W_OK)
