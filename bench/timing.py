"""The timer: candidates take turns in several rounds, so that a change in the machine's speed affects all of them.

A turn warms up, then counts images for some seconds. Comparisons are ratios of turns of the same round.
"""

import itertools
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Protocol

from bench.measurement import Measurement

WARM_UP_SHARE = 0.25  # of the seconds of a turn; caches are filled and the first batches are not counted
_SETTLED = 0.1  # of a core: the CPU use below which the queues of a stream are full
_SETTLE_SECONDS = 3.0  # the longest wait


@dataclass(frozen=True)
class Sample:
    """One turn without its warm-up.

    Attributes:
        images: number of images.
        seconds: wall time.
        cpu_seconds: CPU time of all threads and child processes.
        waited: seconds spent waiting for data, if the turn also does something else.
        gaps: seconds between consecutive batches.
    """

    images: int
    seconds: float
    cpu_seconds: float
    waited: float = 0.0
    gaps: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        """Images per second of wall time."""
        return self.images / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per image. On a shared machine it varies less than the rate."""
        return 1000 * self.cpu_seconds / self.images


class Turn(Protocol):
    """Runs a candidate for about the given number of seconds."""

    def __call__(self, seconds: float) -> Sample: ...


@dataclass(frozen=True)
class Candidate:
    """Something to be timed.

    Attributes:
        name: its name in results.
        open: starts it and returns an endless stream; each item is the number of images done since the item before.
        buffered: the number of items that it prepares between turns; they are not counted.
    """

    name: str
    open: Callable[[], Generator[int, None, None]]
    buffered: int = 4


def run_interleaved(candidates: Sequence[Candidate], rounds: int, seconds: float) -> dict[str, list[Sample]]:
    """Times candidates in turns. All stay open until the end; the order rotates by one each round.

    Args:
        candidates: with different names.
        rounds: turns of each candidate.
        seconds: length of a turn.

    Returns:
        The samples of each candidate by name, one for each round.

    Raises:
        ValueError: two candidates have the same name.
    """
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise ValueError(f"two candidates share a name: {names}")
    with ExitStack() as stack:
        turns: dict[str, Turn] = {}
        for candidate in candidates:
            stream = stack.enter_context(closing(candidate.open()))
            turns[candidate.name] = turn_of(stream, candidate.buffered)
            turns[candidate.name](0.0)  # starts it and runs the first batches, which are slow
        return run_turns(turns, rounds, seconds)


def run_turns(turns: dict[str, Turn], rounds: int, seconds: float) -> dict[str, list[Sample]]:
    """As `run_interleaved`, for candidates that are already open, by name."""
    samples: dict[str, list[Sample]] = {name: [] for name in turns}
    for order in rotations(list(turns), rounds):
        for name in order:
            settle()
            samples[name].append(turns[name](seconds))
    return samples


def settle() -> None:
    """Waits until the queues of the last candidate are full again, so that its work does not slow down the next one."""
    deadline = time.perf_counter() + _SETTLE_SECONDS
    while time.perf_counter() < deadline:
        before = cpu_seconds()
        time.sleep(0.05)
        if cpu_seconds() - before < _SETTLED * 0.05:
            return


def rotations(names: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of the names in each round; it rotates by one, so that each name takes each place."""
    return [[*names[r % len(names) :], *names[: r % len(names)]] for r in range(rounds)]


def turn_of(stream: Iterator[int], buffered: int) -> Turn:
    """Makes turns that continue reading an open stream.

    Args:
        stream: as `Candidate.open` returns it.
        buffered: items that are skipped at the start of a turn, because they were prepared between turns.
    """

    def turn(seconds: float) -> Sample:
        warm_until = time.perf_counter() + WARM_UP_SHARE * seconds
        for done in itertools.count(1):
            next(stream)
            if done > buffered and time.perf_counter() >= warm_until:
                break
        return timed(stream, seconds)

    return turn


def timed(stream: Iterator[int], seconds: float) -> Sample:
    """Reads an open stream for so many seconds, at least one item."""
    images = 0
    gaps: list[float] = []
    cpu_before, start = cpu_seconds(), time.perf_counter()
    last = start
    while last - start < seconds or not gaps:
        images += next(stream)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
    return Sample(images, last - start, cpu_seconds() - cpu_before, last - start, tuple(gaps))


def cpu_seconds() -> float:
    """CPU time of this process, all its threads and its running child processes (Linux)."""
    return time.process_time() + sum(_ticks(child.pid) for child in active_children()) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int | None) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:  # the process has ended
        return 0
    return int(fields[11]) + int(fields[12])  # user and system time


def rates(question: str, samples: dict[str, list[Sample]], settings: dict[str, object]) -> list[Measurement]:
    """Measurements of images/s and CPU ms/image of every candidate."""
    measurements = []
    for name, turns in samples.items():
        measurements += [
            Measurement(question, name, "images/s", tuple(sample.rate for sample in turns), settings),
            Measurement(question, name, "CPU ms/image", tuple(sample.cpu_ms for sample in turns), settings),
        ]
    return measurements


def ratios(
    question: str, samples: dict[str, list[Sample]], limit: str, settings: dict[str, object]
) -> list[Measurement]:
    """Compares every other candidate with `limit` in each round, by rate and by CPU time per image.

    On a shared machine the ratio by CPU time varies less. Where all cores are busy the two are equal.

    Args:
        question: the question that the measurements belong to.
        samples: the samples of each candidate, `limit` included.
        limit: the name of the candidate to compare with.
        settings: of the measurements.
    """
    measurements = []
    for name, turns in samples.items():
        if name != limit:
            cpu = [other.cpu_ms / turn.cpu_ms for turn, other in zip(turns, samples[limit], strict=True)]
            by_rate = ratio_rounds(turns, samples[limit])
            measurements += [
                Measurement(question, name, f"of {limit}", by_rate, settings),
                Measurement(question, name, f"of {limit} by CPU time", tuple(cpu), settings),
            ]
    return measurements


def ratio_rounds(turns: Sequence[Sample], limit: Sequence[Sample]) -> tuple[float, ...]:
    """The ratio of two candidates' rates in each round."""
    return tuple(turn.rate / other.rate for turn, other in zip(turns, limit, strict=True))
