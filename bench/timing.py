"""The one timer: candidates take turns in interleaved rounds, so that a drifting machine drifts under all of them.

A turn warms up, then counts for some seconds. What is compared is the ratio of turns of the same round.
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

WARM_UP_SHARE = 0.25  # of a turn's seconds, before it: caches fill, and the first batch is made under load
_SETTLED = 0.1  # of a core: what is left when a stream's queues are full
_SETTLE_SECONDS = 3.0  # at most


@dataclass(frozen=True)
class Sample:
    """One turn, warm-up excluded.

    Attributes:
        images: done in `seconds` of wall time and `cpu_seconds` of all threads and child processes.
        waited: seconds spent waiting for data, where a turn does something else besides.
        gaps: seconds between consecutive batches.
    """

    images: int
    seconds: float
    cpu_seconds: float
    waited: float = 0.0
    gaps: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per image: steadier than the rate on a shared machine."""
        return 1000 * self.cpu_seconds / self.images


class Turn(Protocol):
    """Runs for about so many seconds."""

    def __call__(self, seconds: float) -> Sample: ...


@dataclass(frozen=True)
class Candidate:
    """Something to be timed.

    Attributes:
        open: starts it: an endless stream that yields the images done since the last.
        buffered: how many of these it prepares while nobody asks; they are not counted.
    """

    name: str
    open: Callable[[], Generator[int, None, None]]
    buffered: int = 4


def run_interleaved(candidates: Sequence[Candidate], rounds: int, seconds: float) -> dict[str, list[Sample]]:
    """A sample of each candidate for each round. All stay open throughout; the order rotates by one each round."""
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise ValueError(f"two candidates share a name: {names}")
    with ExitStack() as stack:
        turns: dict[str, Turn] = {}
        for candidate in candidates:
            stream = stack.enter_context(closing(candidate.open()))
            turns[candidate.name] = turn_of(stream, candidate.buffered)
            turns[candidate.name](0.0)  # opens it and runs its first, slow batches
        return run_turns(turns, rounds, seconds)


def run_turns(turns: dict[str, Turn], rounds: int, seconds: float) -> dict[str, list[Sample]]:
    """The same for turns that are ready."""
    samples: dict[str, list[Sample]] = {name: [] for name in turns}
    for order in rotations(list(turns), rounds):
        for name in order:
            settle()
            samples[name].append(turns[name](seconds))
    return samples


def settle() -> None:
    """Waits until the queues that the last turn left half empty are full, so that nobody pays for another's work."""
    deadline = time.perf_counter() + _SETTLE_SECONDS
    while time.perf_counter() < deadline:
        before = cpu_seconds()
        time.sleep(0.05)
        if cpu_seconds() - before < _SETTLED * 0.05:
            return


def rotations(names: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of each round: everybody once, everybody first in turn."""
    return [[*names[r % len(names) :], *names[: r % len(names)]] for r in range(rounds)]


def turn_of(stream: Iterator[int], buffered: int) -> Turn:
    """Turns that read on in an open stream, and do not count what was buffered between two."""

    def turn(seconds: float) -> Sample:
        warm_until = time.perf_counter() + WARM_UP_SHARE * seconds
        for done in itertools.count(1):
            next(stream)
            if done > buffered and time.perf_counter() >= warm_until:
                break
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

    return turn


def cpu_seconds() -> float:
    """CPU time of this process, all its threads, and the processes that it has started and that live (Linux)."""
    return time.process_time() + sum(_ticks(child.pid) for child in active_children()) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int | None) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:  # it has ended meanwhile
        return 0
    return int(fields[11]) + int(fields[12])  # user and system time


def rates(question: str, samples: dict[str, list[Sample]], settings: dict[str, object]) -> list[Measurement]:
    """Images/s and CPU ms/image of every candidate."""
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
    """How every other candidate compares with `limit`, round by round: by rate, and by CPU time per image.

    On a machine that others use too, the second is the steadier one; where all cores are busy they are the same.
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
    """Rate over rate, each pair from the same round."""
    return tuple(turn.rate / other.rate for turn, other in zip(turns, limit, strict=True))
