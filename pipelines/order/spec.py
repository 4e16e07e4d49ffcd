"""How records are shuffled: the choices that make an order, and the order itself."""

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from pipelines.errors import UserError
from pipelines.order.balanced import BalancedOrder
from pipelines.order.base import Order
from pipelines.order.first import BlockShuffle, RecordShuffle
from pipelines.order.window import MOST_LANES, KeyShuffle, WindowShuffle
from pipelines.ranges import check_ranges, within
from pipelines.shards.shard_set import ShardSet
from pipelines.uniform import RecordUniform

FIRST_VERSION, ORDER_VERSION = 1, 2

# Larger data sets are shuffled in blocks: one request reads many records.
LARGEST_RECORD_SHUFFLE = 50_000
_FIRST_BLOCK_RECORDS = 32  # of version 1
_BLOCK_BYTES = 4_000_000  # a hard disk reads it in three times the time of a seek
_WINDOW_BLOCKS = 64
_FEWEST_BLOCKS = 1024  # of a data set of small records
# Of shards that are sorted by class. The number of blocks in a window mixes them, not the number of records.
_SORTED_BLOCK_RECORDS, _SORTED_WINDOW_BLOCKS = 8, 1024

_DIGEST_RECORDS, _DIGEST_PLACES, _DIGEST_PIECE = 1024, 16, 64


@dataclass(frozen=True)
class ShuffleSpec:
    """How the records of an epoch are shuffled.

    Raises:
        UserError: a value is out of range, or the first version has a window.

    Attributes:
        version: of the order. A run keeps the one that it began with.
        window: how many records are mixed with each other; 0: all of the split. None: as the data set needs it.
        block_records: consecutive records that are read together. None: as the data set needs it.
        is_balanced: whether an epoch has as many records of each class, single records in random order.
    """

    version: int = field(default=ORDER_VERSION, metadata=within(at_least=FIRST_VERSION, at_most=ORDER_VERSION))
    window: int | None = field(default=None, metadata=within(at_least=0, unit="records"))
    block_records: int | None = field(default=None, metadata=within(at_least=1, unit="records"))
    is_balanced: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.version == FIRST_VERSION and self.window:
            what = "an order of version 1, which an earlier release began, has no window"
            raise UserError(what, remedy="begin another run", setting="shuffle_window")
        if self.is_balanced and self.window:
            what = "balanced sampling takes single records from anywhere, so it has no window"
            raise UserError(what, remedy="leave one of the two out", setting="shuffle_window")

    def resolved(self, shards: ShardSet) -> "ShuffleSpec":
        """The same choices with what the data set needs in place of None.

        Args:
            shards: the split. Only its numbers of records and bytes count, and whether it is sorted.

        Returns:
            A spec whose window is 0 if records are shuffled one by one, as up to 50,000 records.
        """
        if self.is_balanced:
            return replace(self, window=0, block_records=1)
        count = len(shards.usable)
        is_small = count <= LARGEST_RECORD_SHUFFLE
        if self.version == FIRST_VERSION:
            block = self.block_records or (1 if is_small or self.window == 0 else _FIRST_BLOCK_RECORDS)
            return replace(self, window=0, block_records=block)
        if self.window == 0 or (self.window or 0) >= count or (is_small and self == ShuffleSpec()):
            return replace(self, window=0, block_records=1)
        block = self.block_records or self._block_for(shards)
        blocks = _SORTED_WINDOW_BLOCKS if shards.is_sorted else _WINDOW_BLOCKS
        return replace(self, window=self.window or min(count, block * blocks), block_records=block)

    def _block_for(self, shards: ShardSet) -> int:
        """How many records a block has. All limits are for the mixing, except the one in bytes."""
        most = [
            len(shards.usable) // _FEWEST_BLOCKS,
            _BLOCK_BYTES * shards.num_records // int(shards.lengths.sum()),
            *([_SORTED_BLOCK_RECORDS] if shards.is_sorted else []),
            *([self.window // MOST_LANES] if self.window else []),
        ]
        return max(1, min(most))

    def order(self, shards: ShardSet, seed: int, epoch: int) -> Order:
        """The order of the usable records of a split in one epoch.

        Args:
            shards: the split.
            seed: from 0.
            epoch: from 0.
        """
        usable, chosen = shards.usable, self.resolved(shards)
        window, block = chosen.window or 0, chosen.block_records or 1
        if self.is_balanced:
            return BalancedOrder(usable, shards.labels[usable], shards.num_records, seed, epoch)
        if self.version == FIRST_VERSION:
            first = (seed, epoch)
            return (
                RecordShuffle(usable, first) if block == 1 else BlockShuffle(usable, shards.usable_starts, first, block)
            )
        if not window:
            return KeyShuffle(usable, seed, epoch)
        return WindowShuffle(usable, shards.usable_starts, seed, epoch, block, window)

    def digest(self, shards: ShardSet, seed: int) -> str:
        """Tells orders apart: a hash of the first records and some other pieces of the first two epochs.

        Args:
            shards: the split.
            seed: of the order.
        """
        found = hashlib.sha256()
        for epoch in range(2):
            order = self.order(shards, seed, epoch)
            places = RecordUniform(seed, epoch, np.arange(_DIGEST_PLACES))(0) * order.length
            pieces = [(0, _DIGEST_RECORDS), *((place, place + _DIGEST_PIECE) for place in places.astype(int).tolist())]
            for start, stop in pieces:
                found.update(order.between(start, min(stop, order.length)).astype("<i8").tobytes())
        return found.hexdigest()[:16]
