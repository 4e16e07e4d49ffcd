"""The first version of the order, for runs that began with it. Its random numbers are those of NumPy's generators.

NumPy does not promise that they stay the same (NEP 19), so a run keeps a digest of its order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from pipelines.order.base import Order, WholeShuffle


@dataclass(frozen=True, eq=False)
class RecordShuffle(WholeShuffle):
    """A random permutation of all records.

    Attributes:
        seed: what NumPy's generator is seeded with.
    """

    seed: Sequence[int]

    def permuted(self) -> np.ndarray:
        return np.random.default_rng(self.seed).permutation(self.records)


@dataclass(frozen=True, eq=False)
class BlockShuffle(Order):
    """The records of each shard are shuffled and cut into blocks; the blocks of all shards are shuffled.

    Only the blocks are shuffled at once. A shard's own permutation is made when a block of it is asked for, and kept:
    four bytes a record.

    Attributes:
        starts: int64 [S + 1], the index of the first record of each shard, and N.
        seed: what NumPy's generator is seeded with.
        block_size: records in a block; the last block of a shard may have fewer.
    """

    has_runs: ClassVar[bool] = True
    starts: np.ndarray
    seed: Sequence[int]
    block_size: int

    @cached_property
    def _first_blocks(self) -> np.ndarray:
        """The first block of each shard, and the number of blocks at the end."""
        counts = -(-np.diff(self.starts) // self.block_size)
        return np.concatenate([[0], np.cumsum(counts)])

    @cached_property
    def _place(self) -> np.ndarray:
        """The place of each block among all blocks."""
        return self._generator(self.length).permutation(int(self._first_blocks[-1]))

    @cached_property
    def _block_at(self) -> np.ndarray:
        """The block at each place."""
        blocks = np.empty_like(self._place)
        blocks[self._place] = np.arange(len(blocks))
        return blocks

    @cached_property
    def _ends(self) -> np.ndarray:
        """The position after the last record of the block at each place."""
        sizes = np.full(len(self._place), self.block_size)
        in_shard, blocks = np.diff(self.starts), np.diff(self._first_blocks)
        sizes[self._first_blocks[1:] - 1] = in_shard - (blocks - 1) * self.block_size
        return np.cumsum(sizes[self._block_at])

    @cached_property
    def _permutations(self) -> dict[int, np.ndarray]:
        return {}

    def _generator(self, drawn: int) -> np.random.Generator:
        """The generator after so many random numbers of 64 bits."""
        bits = np.random.PCG64(np.random.SeedSequence(list(self.seed)))
        return np.random.Generator(bits.advance(drawn))

    def _permutation(self, shard: int) -> np.ndarray:
        """uint32: the order of a shard's records, counted from its first one."""
        if shard not in self._permutations:
            start, stop = self.starts[shard : shard + 2].tolist()
            drawn = self._generator(start).random(stop - start)
            self._permutations[shard] = np.argsort(drawn, kind="stable").astype(np.uint32)
        return self._permutations[shard]

    def between(self, start: int, stop: int) -> np.ndarray:
        if start >= stop:
            return self.records[:0]
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
        blocks = self._block_at[first : last + 1]
        shards = np.searchsorted(self._first_blocks, blocks, side="right") - 1
        parts = []
        for block, shard in zip(blocks.tolist(), shards.tolist(), strict=True):
            begin = (block - int(self._first_blocks[shard])) * self.block_size
            own = self._permutation(shard)[begin : begin + self.block_size]
            parts.append(own + self.starts[shard])
        begin = start - int(self._ends[first - 1] if first else 0)
        return self.records[np.concatenate(parts)[begin : begin + stop - start]]

    def positions(self, records: np.ndarray) -> np.ndarray:
        return np.array([self._position(int(index)) for index in np.searchsorted(self.records, records)], np.int64)

    def _position(self, index: int) -> int:
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        within = int(np.flatnonzero(self._permutation(shard) == index - self.starts[shard])[0])
        place = int(self._place[self._first_blocks[shard] + within // self.block_size])
        return int(self._ends[place - 1] if place else 0) + within % self.block_size
