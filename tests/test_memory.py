"""What glibc does with memory that is free. How much a run takes is measured in `bench/`: this is about the means."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.system.memory import memory_returned

SIZE, COUNT = 64 << 10, 600  # bytes, which is below what has a mapping of its own

# In a process of its own, with an arena that nobody else uses, in whose end all that is freed lies.
PROGRAM = f"""
import ctypes, threading
from pathlib import Path
from pipelines.system.memory import memory_returned

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def fill():
    blocks = [libc.malloc({SIZE}) for _ in range({COUNT})]
    for block in blocks:
        ctypes.memset(block, 1, {SIZE})
    return blocks

def empty(blocks):
    for block in reversed(blocks):
        libc.free(block)

def act():
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
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc: there is nothing to ask")
def test_the_ends_of_arenas_are_given_back() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        environment.pop(name, None)
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert not ran.stderr
    assert int(ran.stdout) < SIZE * COUNT * 0.1  # 0.8 with malloc_trim alone


def test_the_c_library_need_not_be_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.system.memory._LIBC", object())
    with memory_returned():
        pass
