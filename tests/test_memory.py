"""What glibc does with memory that is free. How much a run takes is measured in `bench/`: this is about the means."""

import ctypes

import pytest

from pipelines.system.memory import memory_returned
from tests.helpers.programs import environment, run_program

SIZE, COUNT = 64 << 10, 600  # bytes, which is below what has a mapping of its own


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc: there is nothing to ask")
def test_the_ends_of_arenas_are_given_back() -> None:
    settings = environment()
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        settings.pop(name, None)
    ran = run_program("free_arenas", SIZE, COUNT, env=settings, timeout=60)
    assert not ran.stderr
    assert int(ran.stdout) < SIZE * COUNT * 0.1  # 0.8 with malloc_trim alone


def test_the_c_library_need_not_be_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.system.memory._LIBC", object())
    with memory_returned():
        pass
