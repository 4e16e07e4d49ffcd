"""Does anything leak? Resident memory, threads and open files over many epochs, and what remains after closing."""

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from bench.measurement import Measurement
from bench.settings import Settings

EPOCHS = 20
_BATCHES = 10  # in each epoch


def measure(settings: Settings) -> Iterator[Measurement]:
    """Measures the state at the end of each epoch; a round is an epoch."""
    epochs = 5 if settings.short else EPOCHS
    stamp = settings.stamp(augment="full", dtype="float32", batches_per_epoch=_BATCHES)
    for name in (name for name in settings.loaders if name != "synthetic"):
        _epochs(settings, name, 2)  # libraries are loaded and thread pools are filled
        before = threads(), open_files()
        states = _epochs(settings, name, epochs)
        gc.collect()
        after = threads(), open_files()
        for column, (what, unit) in enumerate((("resident memory", "MB"), ("threads", "threads"), ("files", "files"))):
            rounds = tuple(state[column] for state in states)
            yield Measurement("memory", f"{name}: {what} by epoch", unit, rounds, stamp)
        yield Measurement("memory", f"{name}: threads left after closing", "threads", (after[0] - before[0],), stamp)
        yield Measurement("memory", f"{name}: files left after closing", "files", (after[1] - before[1],), stamp)


def _epochs(settings: Settings, name: str, epochs: int) -> list[tuple[float, int, int]]:
    states = []
    with settings.open(name, "full", records=_BATCHES * settings.batch_size) as loader:
        for epoch in range(epochs):
            batches = iter(loader.epoch(epoch))
            for _ in range(min(_BATCHES, loader.steps_per_epoch)):
                next(batches)
            del batches
            gc.collect()
            states.append((resident_megabytes(), threads(), open_files()))
    return states


def reset_peak() -> None:
    """Makes "VmHWM" of this process the memory now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def resident_megabytes(key: str = "VmRSS", pid: int | str | None = "self") -> float:
    """Reads the resident memory of a process.

    Args:
        key: "VmRSS" for the memory now, "VmHWM" for the peak.
        pid: the process.

    Returns:
        Megabytes.
    """
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":")) * 1024 / 1e6


def threads() -> int:
    """The number of threads of this process, including those of C++ libraries."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()


def open_files() -> int:
    """The number of open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))
