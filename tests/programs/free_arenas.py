"""Prints how many bytes stay in memory after `memory_returned`: argument 1 is the size of a block, 2 their number.

The blocks are in an arena that no other thread uses, and all free memory is at the arena's end.
"""

import ctypes
import sys
import threading
from pathlib import Path

from pipelines.system.memory import memory_returned

size, count = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def fill() -> list[int]:
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    return blocks


def empty(blocks: list[int]) -> None:
    for block in reversed(blocks):
        libc.free(block)


def act() -> None:
    with memory_returned():
        pass  # from now on the threshold is the usual one
    before = resident()
    blocks = fill()
    with memory_returned():
        empty(blocks)
    print(resident() - before)


thread = threading.Thread(target=act)
thread.start()
thread.join()
