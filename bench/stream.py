"""What do short epochs cost? The same records in epochs of a few steps and of many, read as `batches` and `epochs`.

And the start of a pipeline: the rate from the 20th batch after opening on, against the rate of the same pipeline later.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

from bench.measurement import Measurement
from bench.settings import Settings
from bench.timing import Candidate, Sample, rates, ratios, run_interleaved, timed

_LONG_STEPS = 125
_WAYS = ("batches", "epochs")
_FIRST_BATCHES = 20
_SETTLED_SECONDS = 12.0  # after which a pipeline has its final speed


def measure(settings: Settings) -> Iterator[Measurement]:
    """Each loader by itself: the data set's own epochs, and epochs of 125 steps, both ways in turns."""
    own = len(settings.shards.usable)
    long = max(own, _LONG_STEPS * settings.batch_size)
    for loader in (name for name in settings.loaders if name != "synthetic"):
        names = {(way, records): _name(settings, way, records) for records in (long, own) for way in _WAYS}
        candidates = [_candidate(settings, name, loader, *key) for key, name in names.items()]
        samples = run_interleaved(candidates, settings.rounds, settings.seconds)
        stamp = settings.stamp(loader=loader, augment="full", dtype="float32")
        yield from rates("stream", samples, stamp)
        yield from ratios("stream", samples, names[_WAYS[0], long], stamp)
        if not settings.short:
            opened = _after_opening(settings, loader, long)
            yield from rates("stream", opened, stamp)
            yield from ratios("stream", opened, list(opened)[-1], stamp)


def _name(settings: Settings, way: str, records: int) -> str:
    return f"{way}, epochs of {records // settings.batch_size} steps"


def _candidate(settings: Settings, name: str, loader: str, way: str, records: int) -> Candidate:
    def stream() -> Generator[int, None, None]:
        with settings.open(loader, "full", records=records) as opened:
            for _ in _read(opened, way):
                yield settings.batch_size

    return Candidate(name, stream, settings.prefetch + 2)


def _after_opening(settings: Settings, loader: str, records: int) -> dict[str, list[Sample]]:
    """A new pipeline each round: its samples from the 20th batch on, and some seconds later."""
    first: list[Sample] = []
    later: list[Sample] = []
    for _ in range(settings.rounds):
        with closing(_candidate(settings, "", loader, _WAYS[0], records).open()) as stream:
            for _ in range(_FIRST_BATCHES):
                next(stream)
            first.append(timed(stream, settings.seconds))
            timed(stream, _SETTLED_SECONDS)
            later.append(timed(stream, settings.seconds))
    name = _name(settings, _WAYS[0], records)
    return {f"{name}, from the {_FIRST_BATCHES}th batch on": first, f"{name}, some seconds later": later}


def _read(opened: Any, way: str) -> Iterator[Any]:
    """Batches without an end."""
    if way == "epochs":
        yield from opened.epochs(0, 10**6)
    epoch = 0
    while True:
        yield from opened.batches(epoch)
        epoch += 1
