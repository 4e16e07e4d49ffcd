"""How do other common loaders compare? All read the same shards with the same batch size and threads.

A peer is one file in this folder with:
    TITLE: its name in charts.
    AUGMENTS: the augmentations that it supports.
    unavailable(): why it cannot run on this machine, or None.
    batches(task): an endless iterator of (images float32 [B, S, S, 3] in [-1, 1], labels int32 [B] from 0).
"""

import importlib
import pkgutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from bench import decode
from bench.measurement import Measurement
from bench.settings import LONG_EPOCH, Settings
from bench.timing import Candidate, rates, ratios, run_interleaved
from pipelines.shards.records import ENCODED, LABEL
from pipelines.shards.shard_set import ShardSet

ORIGINAL = "keras_imagenet"


@dataclass(frozen=True)
class Task:
    """What a peer has to do.

    Attributes:
        shards: the data set.
        augment: "full" or "standard".
        batch_size: images in a batch.
        image_size: pixels of a side.
        workers: threads or processes.
        records: the minimum number of records in an epoch; records are repeated to reach it.
    """

    shards: ShardSet
    augment: str
    batch_size: int
    image_size: int
    workers: int
    records: int = LONG_EPOCH

    @property
    def files(self) -> list[str]:
        """The paths of the shards."""
        return [str(path) for path in self.shards.paths]


# tf.data's own choice would be longer; batches prepared between turns would then count as work of the next turn.
PREFETCH = 2


def names() -> tuple[str, ...]:
    """The names of all peers, including those that cannot run on this machine."""
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def peer(name: str) -> ModuleType:
    """The module of a peer."""
    return importlib.import_module(f"{__name__}.{name}")


def missing(*packages: str) -> list[str]:
    """Those of the packages (by the name to import) that are not installed."""
    return [package for package in packages if find_spec(package) is None]


def parse_example(serialized: Any, label_base: int) -> tuple[Any, Any]:
    """Parses a record in TensorFlow's graph.

    Args:
        serialized: the bytes of a `tf.train.Example`, a string tensor.
        label_base: the number of the first class in the shards.

    Returns:
        The encoded image (string) and its label counted from 0 (int32).
    """
    import tensorflow as tf

    features = {ENCODED: tf.io.FixedLenFeature([], tf.string), LABEL: tf.io.FixedLenFeature([], tf.int64)}
    parsed = tf.io.parse_single_example(serialized, features)
    return parsed[ENCODED], tf.cast(parsed[LABEL], tf.int32) - label_base


def measure(settings: Settings) -> Iterator[Measurement]:
    """For each augmentation, measures in turns the decode limit, our loaders and every peer that supports it."""
    runnable = working(settings)
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


def working(settings: Settings) -> list[str]:
    """The peers that are asked for and work on this machine. Says why the others do not."""
    found = []
    for name in names() if settings.peers is None else settings.peers:
        if problem := peer(name).unavailable():
            print(f"peer {name} is skipped: {problem}")
        else:
            found.append(name)
    return found


def candidate(name: str, settings: Settings, augment: str, records: int = LONG_EPOCH) -> Candidate:
    """A peer as a candidate for the timer; `records` as for `Task`."""
    task = Task(settings.shards, augment, settings.batch_size, settings.image_size, settings.workers, records)

    def stream() -> Generator[int, None, None]:
        batches: Iterator[Any] = peer(name).batches(task)
        try:
            for _ in batches:
                yield task.batch_size
        finally:
            if hasattr(batches, "close"):
                batches.close()

    return Candidate(name, stream, 2 * settings.workers + 2)
