"""Measures how fast a storage delivers records: in order or scattered, one at a time or asked for in advance.

The pages of the shards are dropped before each measurement, so that the records come from the storage. No TensorFlow.
"""

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.shards.dataset import DatasetInfo
from pipelines.shards.shard_set import ShardSet
from pipelines.system.pages import drop_pages, share_in_memory
from pipelines.system.reading import ask_for

MOST_SHARDS = 16  # that are read: enough to keep a disk from finding everything in one place
AHEAD = 256  # records that are asked for in advance


@dataclass(frozen=True)
class Reads:
    """Records a second, each measured with the pages dropped before.

    Attributes:
        in_order: as they are in the shards, one at a time.
        in_order_ahead: the same, asked for in advance.
        scattered: in random order, one at a time.
        scattered_ahead: the same, asked for in advance: as the loaders read.
        kept: the share of the pages that stayed in memory when they were dropped, in [0, 1]; None: unknown.
    """

    in_order: float
    in_order_ahead: float
    scattered: float
    scattered_ahead: float
    kept: float | None


def open_split(directory: Path) -> ShardSet:
    """Opens the split `train`, or the first one if there is no `train`.

    Raises:
        UserError: as `ShardSet.open`.
    """
    splits = sorted(DatasetInfo.load(directory).splits)
    return ShardSet.open(directory, "train" if "train" in splits or not splits else splits[0])


def measure_reads(shards: ShardSet, seconds: float) -> Reads:
    """Measures each way of reading.

    Args:
        shards: the data set; at most `MOST_SHARDS` of its shards are read, and dropped from memory.
        seconds: of all measurements together.

    Raises:
        OSError: a shard cannot be read.
    """
    records = sample(shards)
    scattered = np.random.default_rng(0).permutation(records)
    used = sorted(set(shards.shard[records].tolist()))
    paths = [shards.paths[number] for number in used]

    def rate(order: np.ndarray, ahead: int) -> float:
        for path in paths:
            drop_pages(path)
        with opened(shards, used) as descriptors:
            return _rate(shards, descriptors, order, ahead, seconds / 4)

    for path in paths:
        drop_pages(path)
    kept = share_in_memory(paths)
    return Reads(rate(records, 0), rate(records, AHEAD), rate(scattered, 0), rate(scattered, AHEAD), kept)


def read_in(shards: ShardSet, records: np.ndarray) -> None:
    """Reads records, so that they are in memory.

    Args:
        shards: the data set.
        records: int64 [N].

    Raises:
        OSError: a shard cannot be read.
    """
    with opened(shards, sorted(set(shards.shard[records].tolist()))) as descriptors:
        _rate(shards, descriptors, records, AHEAD, math.inf)


def sample(shards: ShardSet) -> np.ndarray:
    """int64 [N]: the usable records of at most `MOST_SHARDS` shards, spread evenly over all of them, ascending."""
    with_records = np.unique(shards.shard[shards.usable])
    places = np.linspace(0, len(with_records) - 1, min(MOST_SHARDS, len(with_records))).round().astype(int)
    return shards.usable[np.isin(shards.shard[shards.usable], with_records[places])]


@contextmanager
def opened(shards: ShardSet, numbers: Sequence[int]) -> Iterator[dict[int, int]]:
    """The descriptors of some shards by their number, open within the block."""
    with ExitStack() as stack:
        descriptors = {}
        for number in numbers:
            descriptors[number] = os.open(shards.paths[number], os.O_RDONLY)
            stack.callback(os.close, descriptors[number])
        yield descriptors


def _rate(shards: ShardSet, descriptors: dict[int, int], order: np.ndarray, ahead: int, seconds: float) -> float:
    """Records a second, reading in the given order until the time or the records are over.

    Args:
        shards: the data set.
        descriptors: of its shards.
        order: int64 [N], the records.
        ahead: how many records are asked for in advance; 0: none, the kernel guesses.
        seconds: length of the measurement.
    """
    places = list(
        zip(
            (descriptors[number] for number in shards.shard[order].tolist()),
            shards.offsets[order].tolist(),
            shards.lengths[order].tolist(),
            strict=True,
        )
    )
    start, done = time.perf_counter(), 0
    for place in places[:ahead]:
        ask_for(*place)
    for done, (descriptor, offset, length) in enumerate(places, start=1):
        if ahead and done - 1 + ahead < len(places):
            ask_for(*places[done - 1 + ahead])
        os.pread(descriptor, length, offset)
        if time.perf_counter() - start >= seconds:
            break
    return done / (time.perf_counter() - start)
