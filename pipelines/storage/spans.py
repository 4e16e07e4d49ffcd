"""Which bytes of the shards hold some records."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.shards.shard_set import ShardSet

PAGE = mmap.PAGESIZE
_LARGEST_BUFFER = 8192  # of C's stdio: the block size of the file system, if that is smaller
_SHARD_BITS = 40  # pages are numbered through all shards, 2^40 of them in each


class Span(NamedTuple):
    """Consecutive pages of one shard.

    Attributes:
        shard: its number.
        first: the first byte.
        end: the byte after the last one; it may be after the end of the file.
        place: of the first run in it, among those that were asked for.
    """

    shard: int
    first: int
    end: int
    place: int

    def pieces(self, largest: int) -> Iterator[tuple[int, int]]:
        """(first byte, length) of parts of at most `largest` bytes, a multiple of `PAGE`."""
        for first in range(self.first, self.end, largest):
            yield first, min(largest, self.end - first)


def spans_of(shards: ShardSet, runs: np.ndarray, buffer: int) -> list[Span]:
    """The pages of some runs of records, and what stdio reads around them; no page twice.

    Args:
        shards: the split.
        runs: int [N, 2], the first and the last record of each run, both in one shard, in the order of their need.
        buffer: see `stdio_buffer`.

    Returns:
        The spans in the order in which they are needed. Spans of one shard do not touch.
    """
    if not len(runs):
        return []
    first, last = runs.T
    base, block = shards.shard[first].astype(np.int64) << _SHARD_BITS, max(buffer, PAGE)
    begins = base + shards.offsets[first] // block * (block // PAGE)
    ends = base - (-(shards.offsets[last] + shards.lengths[last] + buffer) // PAGE)
    order = np.argsort(begins, kind="stable")
    begins, ends = begins[order], np.maximum.accumulate(ends[order])
    starts = np.flatnonzero(np.append(True, begins[1:] > ends[:-1]))  # those that no earlier span touches
    needed = np.minimum.reduceat(order, starts)
    begins, ends = begins[starts], ends[np.append(starts[1:], len(order)) - 1]
    shard, within = begins >> _SHARD_BITS, (1 << _SHARD_BITS) - 1
    columns = (shard, (begins & within) * PAGE, (ends - (shard << _SHARD_BITS)) * PAGE, needed)
    table = np.stack(columns, axis=1)[np.argsort(needed)]
    return [Span(*row) for row in table.tolist()]


def stdio_buffer(path: Path) -> int:
    """How many bytes stdio, and so DALI, reads of a file at a time. Around a record it may read as many more."""
    try:
        size = path.stat().st_blksize
    except OSError:
        size = 0
    return size if 0 < size < _LARGEST_BUFFER else _LARGEST_BUFFER
