"""What do short epochs cost? The same records in epochs of a few steps and of many, read as `batches` and `epochs`."""

from collections.abc import Generator, Iterator
from typing import Any

from bench.measurement import Measurement
from bench.settings import Settings
from bench.timing import Candidate, rates, ratios, run_interleaved

_LONG_STEPS = 125
_WAYS = ("batches", "epochs")


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


def _name(settings: Settings, way: str, records: int) -> str:
    return f"{way}, epochs of {records // settings.batch_size} steps"


def _candidate(settings: Settings, name: str, loader: str, way: str, records: int) -> Candidate:
    def stream() -> Generator[int, None, None]:
        with settings.open(loader, "full", records=records) as opened:
            for _ in _read(opened, way):
                yield settings.batch_size

    return Candidate(name, stream, settings.prefetch + 2)


def _read(opened: Any, way: str) -> Iterator[Any]:
    """Batches without an end."""
    if way == "epochs":
        yield from opened.epochs(0, 10**6)
    epoch = 0
    while True:
        yield from opened.batches(epoch)
        epoch += 1
