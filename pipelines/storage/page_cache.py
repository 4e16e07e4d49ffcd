"""Whether the kernel has a part of a file in memory."""

import mmap
import os

from pipelines.system.pages import count_resident


def is_cached(descriptor: int, first: int, end: int) -> bool:
    """Whether most pages of a part of a file are in memory, read to the end. Reads nothing.

    To those who neither own nor may write the file, Linux says that all pages are.

    Args:
        descriptor: the open file.
        first: the first byte, a multiple of the page size.
        end: the byte after the last one; the part after the end of the file does not count.

    Raises:
        OSError: the file cannot be mapped, or the kernel does not say it.
    """
    length = min(end, os.fstat(descriptor).st_size) - first
    if length <= 0:
        return True
    with mmap.mmap(descriptor, length, prot=mmap.PROT_READ, offset=first) as mapped:
        return count_resident(mapped) >= -(-length // mmap.PAGESIZE) / 2
