"""How evenly do batches arrive? Percentiles of the time between batches, and stalls: gaps over three medians."""

from collections.abc import Callable, Iterator

import numpy as np

from bench.measurement import Measurement
from bench.settings import Settings
from bench.timing import run_interleaved

STALL = 3.0


def measure(settings: Settings) -> Iterator[Measurement]:
    """Measures the gaps between batches that are taken as fast as they arrive."""
    for augment in settings.augments:
        candidates = [settings.candidate(name, name, augment) for name in settings.loaders if name != "synthetic"]
        samples = run_interleaved(candidates, settings.rounds, settings.seconds)
        stamp = settings.stamp(augment=augment, dtype="float32")
        for name, turns in samples.items():
            gaps = [1000 * np.array(turn.gaps) for turn in turns]
            for statistic, function in STATISTICS.items():
                unit = "of batches" if statistic == "stalls" else "ms"
                yield Measurement("latency", f"{name}: {statistic}", unit, tuple(map(function, gaps)), stamp)


def stalls(gaps: np.ndarray) -> float:
    """The share of the gaps that are longer than three medians.

    Args:
        gaps: float [N], the time between consecutive batches.
    """
    return float(np.mean(gaps > STALL * np.median(gaps)))


STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "p50": lambda gaps: float(np.percentile(gaps, 50)),
    "p95": lambda gaps: float(np.percentile(gaps, 95)),
    "p99": lambda gaps: float(np.percentile(gaps, 99)),
    "longest": lambda gaps: float(gaps.max()),
    "stalls": stalls,
}
