"""The second version of the order, made for disks. Its random numbers are our own, see `pipelines.uniform`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from pipelines.order.base import Order, WholeShuffle, deal_evenly
from pipelines.uniform import RecordUniform

# Columns of random numbers, far from those of the augmentation.
_RECORD, _FIRST_BLOCK, _BLOCK, _DELAY, _IN_BLOCK, _IN_SLOT, _ROUND = range(1 << 20, (1 << 20) + 7)
MOST_LANES = 16
# The lanes with the bits of their numbers in reverse: the first two are of both halves, the first four of all quarters.
_REVERSED = np.array([0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15])
_RECENT_PIECES = 8  # that are kept: a loader and what reads ahead of it are at different positions


@dataclass(frozen=True, eq=False)
class KeyShuffle(WholeShuffle):
    """A random permutation of all records: sorted by a random number that belongs to the record.

    Attributes:
        seed: from 0.
        epoch: from 0.
    """

    seed: int
    epoch: int

    def permuted(self) -> np.ndarray:
        bits = RecordUniform(self.seed, self.epoch, self.records).bits(_RECORD)
        return self.records[_by_group_and_bits(np.zeros_like(self.records), bits)]


@dataclass(frozen=True, eq=False)
class WindowShuffle(Order):
    """Blocks of consecutive records in random order; the records of each block are spread over a window of blocks.

    1. Each shard is cut into blocks of `block_records` consecutive records. The first block of a shard has a random
       size in each epoch, so that a record gets other neighbours.
    2. The blocks of all shards are shuffled and cut into 16 lanes of as many records. A block at the end of a lane is
       divided between two.
    3. In a lane, block p opens at slot p and stays open for `span` slots. It deals its records, in random order, evenly
       to these slots. A lane is the sequence of its slots, with the records of each slot shuffled.
    4. The order takes a record from each lane, then the next one from each, and so on. In each such round the lanes are
       in one of 16 orders, at random; in each of them, a part of a round is spread evenly over the lanes.

    So any run of records comes evenly from all blocks that are open, 16 × `span`; at the ends of an epoch from fewer. A
    block is needed when its first record is: blocks are read one after the other, never many at once. And ranks which
    divide a batch by lanes read different blocks.

    Only the blocks are shuffled as a whole. Pieces of the order are calculated when they are asked for.

    Attributes:
        starts: int64 [S + 1], the index of the first record of each shard, and N.
        seed: from 0.
        epoch: from 0.
        block_records: records in a block, at least 1; the first and the last block of a shard may have fewer.
        window: records of the blocks that are open at a time, at least 1.
    """

    starts: np.ndarray
    seed: int
    epoch: int
    block_records: int
    window: int

    def between(self, start: int, stop: int) -> np.ndarray:
        if start >= stop:
            return self.records[:0]
        first, last = start // self._piece, (stop - 1) // self._piece
        found = np.concatenate([self._recent(piece) for piece in range(first, last + 1)])
        return self.records[found[start - first * self._piece : stop - first * self._piece]]

    def positions(self, records: np.ndarray) -> np.ndarray:
        wanted = self._indexes_of(records)
        part = self._lanes.part_of(self._place_in_blocks(wanted))
        first, last = self._lanes.rounds_of(part)
        found = np.empty(len(wanted), np.int64)
        for piece in _union(first * self._lanes.count // self._piece, last * self._lanes.count // self._piece):
            inside = self._recent(piece)
            by_index = np.argsort(inside, kind="stable")
            at = np.minimum(np.searchsorted(inside, wanted, sorter=by_index), len(inside) - 1)
            is_here = inside[by_index[at]] == wanted
            found[is_here] = piece * self._piece + by_index[at[is_here]]
        return found

    def together(self, records: np.ndarray) -> np.ndarray:
        block = self._block_of(self._indexes_of(records))
        return np.stack([self.records[self._edges[block]], self.records[self._edges[block + 1] - 1]], axis=1)

    def deal(self, batches: np.ndarray, ranks: int) -> np.ndarray:
        """Divides each batch by the lanes of its records, so that few blocks are read by two ranks."""
        if ranks == 1:
            return deal_evenly(batches, ranks)
        lane = self._lanes.lane_of(self._place_in_blocks(self._indexes_of(batches)))
        parts = deal_evenly(np.argsort(lane, axis=1, kind="stable"), ranks)
        parts = np.sort(parts, axis=2)  # in each part, the order of the positions
        return np.take_along_axis(batches, parts.reshape(batches.shape), axis=1).reshape(parts.shape)

    @cached_property
    def _edges(self) -> np.ndarray:
        """int64 [M + 1]: the index of the first record of each block, in the order of the shards, and N."""
        first = 1 + self._numbers(_FIRST_BLOCK, len(self.starts) - 1) % self.block_records
        rest = np.maximum(np.diff(self.starts) - first, 0)
        counts = 1 + -(-rest // self.block_records)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of each block in its shard
        before = np.where(number > 0, np.repeat(first, counts) + (number - 1) * self.block_records, 0)
        return np.append(np.repeat(self.starts[:-1], counts) + before, self.starts[-1])

    def _indexes_of(self, records: np.ndarray) -> np.ndarray:
        first, last = self.records[[0, -1]].tolist()
        if last - first + 1 == len(self.records):  # none is left out: no search
            return records - first
        return np.searchsorted(self.records, records)

    def _block_of(self, indexes: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._edges, indexes, side="right") - 1

    @cached_property
    def _block_at(self) -> np.ndarray:
        """The block at each place of the blocks' order."""
        return self._sorted(np.zeros(len(self._edges) - 1, np.int64), np.arange(len(self._edges) - 1), _BLOCK)

    @cached_property
    def _block_starts(self) -> np.ndarray:
        """For each block, how many records are in the blocks before it in the blocks' order."""
        sizes = np.diff(self._edges)[self._block_at]
        starts = np.empty_like(sizes)
        starts[self._block_at] = np.cumsum(sizes) - sizes
        return starts

    def _place_in_blocks(self, indexes: np.ndarray) -> np.ndarray:
        """The places of records if the blocks were only put one after the other."""
        block = self._block_of(indexes)
        return self._block_starts[block] + indexes - self._edges[block]

    @cached_property
    def _lanes(self) -> "_Lanes":
        blocks, count = len(self._block_at), len(self.records)
        lanes = min(MOST_LANES, blocks)
        span = max(1, self.window * blocks // (count * lanes))
        cuts = count // lanes * np.arange(lanes + 1) + np.minimum(np.arange(lanes + 1), count % lanes)
        ends = np.cumsum(np.diff(self._edges)[self._block_at])
        inside = np.searchsorted(ends, cuts[1:-1])  # the block at the end of each lane but the last
        is_divided = ends[inside] > cuts[1:-1]
        divided, at = inside[is_divided], cuts[1:-1][is_divided]
        begins = self._edges[self._block_at]
        rest = self._edges[self._block_at[divided] + 1] - (ends[divided] - at)  # where the second part of each begins
        return _Lanes(
            span=span,
            cuts=cuts,
            edges=np.concatenate([[0], np.insert(ends, divided, at)]),
            begins=np.insert(begins, divided + 1, rest),
            delays=self._numbers(_DELAY, len(begins) + len(divided)) % span,
        )

    @cached_property
    def _piece(self) -> int:
        """How many positions are calculated at a time: whole rounds, twice those of a window, to share its records."""
        return self._lanes.count * max(64, 2 * self._lanes.span * self.block_records)

    @cached_property
    def _recent(self) -> Callable[[int], np.ndarray]:
        return lru_cache(maxsize=_RECENT_PIECES)(self._calculated)

    def _calculated(self, piece: int) -> np.ndarray:
        """int64: the indexes of the records of a piece, in their order."""
        lanes, rounds = self._lanes, self._piece // self._lanes.count
        opened = lanes.opened(piece * rounds, (piece + 1) * rounds)
        sizes = lanes.sizes[opened.parts]
        row = np.repeat(np.arange(len(sizes)), sizes)
        turn = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of each record in its part
        indexes = lanes.begins[opened.parts][row] + turn
        indexes = indexes[self._sorted(row, indexes, _IN_BLOCK)]
        slot = opened.slots[row] + ((turn + 1) * lanes.span - lanes.delays[opened.parts][row] - 1) // sizes[row]
        lane = opened.lanes[row]
        is_inside = (slot >= opened.first_slots[lane]) & (slot < opened.end_slots[lane])
        indexes, slot, lane = indexes[is_inside], slot[is_inside], lane[is_inside]
        by_lane = self._sorted(lane * (slot.max() + 1) + slot, indexes, _IN_SLOT)
        indexes, lane = indexes[by_lane], lane[by_lane]
        counts = np.bincount(lane, minlength=lanes.count)
        number = np.arange(len(lane)) - np.repeat(np.cumsum(counts) - counts, counts) + opened.first_rounds[lane]
        number -= piece * rounds
        is_inside = (number >= 0) & (number < rounds)
        indexes, number, lane = indexes[is_inside], number[is_inside], lane[is_inside]
        bits = RecordUniform(self.seed, self.epoch, piece * rounds + np.arange(rounds)).bits(_ROUND)
        turned = lane ^ (bits % np.uint64(MOST_LANES)).astype(np.int64)[number]
        order = np.full(MOST_LANES * rounds, -1)
        order[MOST_LANES * number + _REVERSED[turned]] = indexes
        return order[order >= 0]

    def _sorted(self, groups: np.ndarray, indexes: np.ndarray, column: int) -> np.ndarray:
        """The order of records by group, from 0, and at random within each group."""
        return _by_group_and_bits(groups, RecordUniform(self.seed, self.epoch, indexes).bits(column))

    def _numbers(self, column: int, count: int) -> np.ndarray:
        """int64 [count]: 32 random bits each."""
        bits = RecordUniform(self.seed, self.epoch, np.arange(count)).bits(column)
        return (bits >> np.uint64(32)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Opened:
    """What has to be known of the lanes to calculate some rounds.

    Attributes:
        parts: int64 [K], the parts that deal to these rounds.
        lanes: int64 [K], the lane of each.
        slots: int64 [K], the slot in which each opens, counted in its lane.
        first_slots: int64 [L], the first slot of each lane that is complete in these parts.
        end_slots: int64 [L], the slot after the last one.
        first_rounds: int64 [L], the round of the first record of that first slot.
    """

    parts: np.ndarray
    lanes: np.ndarray
    slots: np.ndarray
    first_slots: np.ndarray
    end_slots: np.ndarray
    first_rounds: np.ndarray


@dataclass(frozen=True, eq=False)
class _Lanes:
    """The blocks' order, cut into lanes. A part is a block, or a piece of one that is divided between two lanes.

    Places count records in the blocks' order: lane l has the places `cuts[l]` … `cuts[l + 1]` − 1.

    Attributes:
        span: how many slots a part is open.
        cuts: int64 [L + 1], the first place of each lane, and N.
        edges: int64 [P + 1], the first place of each part, and N.
        begins: int64 [P], the index of the first record of each part.
        delays: int64 [P], from 0 to `span` − 1: they keep the parts out of step.
    """

    span: int
    cuts: np.ndarray
    edges: np.ndarray
    begins: np.ndarray
    delays: np.ndarray

    @property
    def count(self) -> int:
        """The number of lanes."""
        return len(self.cuts) - 1

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 [P]: the records of each part."""
        return np.diff(self.edges)

    @cached_property
    def _firsts(self) -> np.ndarray:
        """The first part of each lane, and P."""
        return np.searchsorted(self.edges, self.cuts)

    @cached_property
    def _groups(self) -> np.ndarray:
        """The first group of each lane, and the number of groups. A group is `span` parts of a lane."""
        counts = -(-np.diff(self._firsts) // self.span)
        return np.concatenate([[0], np.cumsum(counts)])

    @cached_property
    def _group_ends(self) -> np.ndarray:
        """For each group, the place in the lane after the records of the slots in which its parts open."""
        parts = np.arange(len(self.sizes))
        number = (parts - self._firsts[self._lane_of_part(parts)]) % self.span
        dealt = (self.sizes * (self.span - number) + self.delays) // self.span  # before the slots of the next group
        heads = np.flatnonzero(number == 0)
        return np.cumsum(np.add.reduceat(self.sizes, heads)) - np.add.reduceat(self.sizes - dealt, heads)

    def _lane_of_part(self, parts: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._firsts, parts, side="right") - 1

    def lane_of(self, places: np.ndarray) -> np.ndarray:
        """The lane of each place."""
        return np.searchsorted(self.cuts, places, side="right") - 1

    def part_of(self, places: np.ndarray) -> np.ndarray:
        """The part of each place."""
        return np.searchsorted(self.edges, places, side="right") - 1

    def rounds_of(self, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last round that may have a record of each part."""
        lane = self._lane_of_part(parts)
        group = (parts - self._firsts[lane]) // self.span
        return self._round(lane, group), self._round(lane, group + 2) - 1  # a part is open in two groups of slots

    def _round(self, lane: np.ndarray, group: np.ndarray) -> np.ndarray:
        """The first round of a group of slots; of one after the last, the rounds of the lane."""
        before = self._groups[lane] + group - 1
        start = np.where(group == 0, self.cuts[lane], self._group_ends[np.minimum(before, len(self._group_ends) - 1)])
        return np.where(before >= self._groups[lane + 1], self.cuts[lane + 1], start) - self.cuts[lane]

    def opened(self, first: int, end: int) -> _Opened:
        """What is needed to calculate the rounds `first` … `end` − 1."""
        lane = np.arange(self.count)
        start, stop = self.cuts[:-1] + first, np.minimum(self.cuts[:-1] + end, self.cuts[1:])
        has_some = start < stop
        first_group = np.searchsorted(self._group_ends, start, side="right") - self._groups[:-1]
        last_group = np.searchsorted(self._group_ends, stop - 1, side="right") - self._groups[:-1]
        begin = np.maximum(0, first_group - 1) * self.span
        number = np.minimum(np.diff(self._firsts), (last_group + 1) * self.span) - begin
        number = np.where(has_some, number, 0)
        lanes = np.repeat(lane, number)
        slots = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number - begin, number)
        return _Opened(
            parts=self._firsts[lanes] + slots,
            lanes=lanes,
            slots=slots,
            first_slots=first_group * self.span,
            end_slots=(last_group + 1) * self.span,
            first_rounds=np.where(has_some, self._round(lane, np.where(has_some, first_group, 0)), 0),
        )


def _by_group_and_bits(groups: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """The order by group, and within each by random bits.

    The keys contain the positions, so no two are equal, and each way to sort gives the same. It is several times
    faster than `np.argsort`.
    """
    group_bits = int(groups.max(initial=0)).bit_length()
    low = np.uint64((1 << len(groups).bit_length()) - 1)
    keys = (bits >> np.uint64(group_bits)) & ~low | np.arange(len(groups), dtype=np.uint64)
    if group_bits:
        keys |= groups.astype(np.uint64) << np.uint64(64 - group_bits)
    keys.sort()
    return (keys & low).astype(np.int64)


def _union(firsts: np.ndarray, lasts: np.ndarray) -> list[int]:
    """All numbers that are in one of the ranges `firsts[i]` … `lasts[i]`."""
    return sorted({number for pair in zip(firsts, lasts, strict=True) for number in range(pair[0], pair[1] + 1)})
