"""Gives memory that is free back to the system, which glibc does not do by itself."""

import ctypes


def return_free_memory() -> None:
    """Unmaps the free pages of all arenas (glibc's malloc_trim: milliseconds); nothing where the C library has none.

    A pipeline's threads have arenas of their own. What they leave there when an epoch ends is not used again by the
    next one's threads: with DALI, in epochs of a second, resident memory went from 1.1 to 2.9 GB in 60 epochs.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
