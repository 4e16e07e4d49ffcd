"""Whether the kernel has a part of a file in memory."""

import ctypes
import mmap
import os

import numpy as np

_LIBC = ctypes.CDLL(None)


def is_cached(descriptor: int, first: int, end: int) -> bool:
    """Whether most pages of a part of a file are in memory, read to the end. Reads nothing.

    To those who neither own nor may write the file, Linux says that all pages are.

    Args:
        descriptor: the open file.
        first: the first byte, a multiple of the page size.
        end: the byte after the last one; the part after the end of the file does not count.

    Raises:
        OSError: the file cannot be mapped.
    """
    length = min(end, os.fstat(descriptor).st_size) - first
    if length <= 0:
        return True
    with mmap.mmap(descriptor, length, prot=mmap.PROT_READ, offset=first) as mapped:
        view, pages = np.frombuffer(mapped, np.uint8), np.zeros(-(-length // mmap.PAGESIZE), np.uint8)
        address, answer = ctypes.c_void_p(view.ctypes.data), ctypes.c_void_p(pages.ctypes.data)
        failed = _LIBC.mincore(address, ctypes.c_size_t(length), answer)
        del view  # else the mapping cannot be closed
    if failed:
        raise OSError(f"mincore failed for file descriptor {descriptor}")
    return bool(np.mean(pages & 1) >= 0.5)
