"""Returns free memory to the system, which glibc does not do by itself."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_LIBC = ctypes.CDLL(None)
_M_TRIM_THRESHOLD = -1  # malloc.h
_TRIM_AT_ONCE = 64 << 10  # bytes
_TRIM_USUALLY = 64 << 20  # the largest value that glibc chooses by itself when large arrays are allocated and freed


def return_free_memory() -> None:
    """Unmaps the free pages between used ones with glibc's malloc_trim (milliseconds). Does nothing on other systems.

    The threads of a pipeline have separate arenas. The threads of the next epoch do not use what these arenas keep when
    an epoch ends: with DALI and epochs of one second, resident memory grew from 1.1 to 2.9 GB in 60 epochs.
    """
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


@contextmanager
def memory_returned() -> Iterator[None]:
    """Memory that the block frees goes back to the system, including the ends of arenas.

    malloc_trim cuts the end of the main arena only. A `free` cuts the end of another arena if more than a threshold is
    free there. This threshold is usually so high that each of many arenas keeps the most that it ever held.

    Side effect: after the first call glibc no longer adapts its thresholds. An array larger than any that the process
    had freed before is then mapped separately each time, page by page.
    """
    has_threshold = hasattr(_LIBC, "mallopt")
    if has_threshold:
        _LIBC.mallopt(_M_TRIM_THRESHOLD, _TRIM_AT_ONCE)
    try:
        yield
    finally:
        if has_threshold:
            _LIBC.mallopt(_M_TRIM_THRESHOLD, _TRIM_USUALLY)
        return_free_memory()
