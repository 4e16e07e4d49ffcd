"""How do the loaders that people use compare? The same shards, batch, threads and output, beside the limit and ours.

A peer is one file here: `TITLE` for charts; `AUGMENTS`, the augmentations it can do; `unavailable()`, why it cannot run
here, or None; `batches(task)`, endless (images float32 [B, S, S, 3] in [-1, 1], labels int32 [B] from 0).
"""

import importlib
import pkgutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from bench import decode
from bench.measurement import Measurement
from bench.settings import Settings
from bench.timing import Candidate, rates, ratios, run_interleaved
from pipelines.shards.shard_set import ShardSet

ORIGINAL = "keras_imagenet"


@dataclass(frozen=True)
class Task:
    """What a peer is to do. `augment` is "full" or "standard", `workers` its threads or processes."""

    shards: ShardSet
    augment: str
    batch_size: int
    image_size: int
    workers: int

    @property
    def files(self) -> list[str]:
        """The shards' paths."""
        return [str(path) for path in self.shards.paths]


# Buffers of tf.data's own choosing would be filled between turns, and the turn would begin with work done before it.
PREFETCH = 2


def names() -> tuple[str, ...]:
    """All peers, those included that cannot run here."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def peer(name: str) -> ModuleType:
    """The file of a peer."""
    return importlib.import_module(f"{__name__}.{name}")


def measure(settings: Settings) -> Iterator[Measurement]:
    """One group for each augmentation: the limit, our loaders and every peer that can do it, in turns."""
    runnable = []
    for name in names():
        if problem := peer(name).unavailable():
            print(f"peers: {name} is left out: {problem}")
        else:
            runnable.append(name)
    for augment in settings.augments:
        candidates = [decode.limit(settings)]
        candidates += [settings.candidate(name, name, augment) for name in settings.loaders if name != "synthetic"]
        candidates += [candidate(name, settings, augment) for name in runnable if augment in peer(name).AUGMENTS]
        samples = run_interleaved(candidates, settings.rounds, settings.seconds)
        stamp = settings.stamp(augment=augment, dtype="float32")
        yield from rates("peers", samples, stamp)
        yield from ratios("peers", samples, decode.LIMIT, stamp)
        if ORIGINAL in samples:
            ours = {name: samples[name] for name in samples if name in (*settings.loaders, ORIGINAL)}
            yield from ratios("peers", ours, ORIGINAL, stamp)


def candidate(name: str, settings: Settings, augment: str) -> Candidate:
    """A peer as something to be timed."""
    task = Task(settings.shards, augment, settings.batch_size, settings.image_size, settings.workers)

    def stream() -> Generator[int, None, None]:
        batches: Iterator[Any] = peer(name).batches(task)
        try:
            for _ in batches:
                yield task.batch_size
        finally:
            if hasattr(batches, "close"):
                batches.close()

    return Candidate(name, stream, 2 * settings.workers + 2)
