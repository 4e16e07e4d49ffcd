"""The order of an epoch, computed range by range, against the same order computed as a whole."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.order.base import FileOrder, Order
from pipelines.order.first import BlockShuffle, RecordShuffle
from pipelines.order.window import KeyShuffle, WindowShuffle
from pipelines.uniform import RecordUniform

SEED = (7, 3)


def whole_block_shuffle(records: np.ndarray, shard: np.ndarray, block_size: int) -> np.ndarray:
    """All at once, as the definition says: shards in random order, cut into blocks, blocks in random order."""
    rng = np.random.default_rng(SEED)
    within = np.lexsort((rng.random(len(records)), shard))
    first = np.searchsorted(shard, shard, side="left")
    block = np.cumsum((np.arange(len(records)) - first) % block_size == 0) - 1
    place = rng.permutation(block[-1] + 1)
    return records[within][np.argsort(place[block], kind="stable")]


def whole_window_shuffle(order: WindowShuffle) -> list[int]:
    """All at once, as the definition says: blocks, lanes, slots, rounds. The columns of random numbers are 1 << 20 …"""

    def drawn(column: int, numbers: list[int]) -> list[int]:
        return RecordUniform(order.seed, order.epoch, np.array(numbers)).bits((1 << 20) + column).tolist()

    def shuffled(column: int, numbers: list[int]) -> list[int]:
        return [number for _, number in sorted(zip(drawn(column, numbers), numbers, strict=True))]

    count, starts = len(order.records), order.starts.tolist()
    firsts = [1 + (bits >> 32) % order.block_records for bits in drawn(1, list(range(len(starts) - 1)))]
    blocks = []
    for start, stop, first in zip(starts, starts[1:], firsts, strict=False):
        edges = [start, *range(start + first, stop, order.block_records), stop]
        blocks += [list(range(*ends)) for ends in itertools.pairwise(edges)]
    lanes = min(16, len(blocks))
    span = max(1, order.window * len(blocks) // (count * lanes))
    sequence = [(block, index) for block in shuffled(2, list(range(len(blocks)))) for index in blocks[block]]
    dealt: list[list[int]] = []
    part = 0
    for lane in range(lanes):
        own = sequence[: count // lanes + (lane < count % lanes)]
        sequence = sequence[len(own) :]
        parts = [[index for _, index in group] for _, group in itertools.groupby(own, lambda pair: pair[0])]
        slots: list[list[int]] = [[] for _ in range(len(parts) + span)]
        for opened, indexes in enumerate(parts):
            delay = (drawn(3, [part])[0] >> 32) % span
            part += 1
            for rank, index in enumerate(shuffled(4, indexes)):
                # After j slots a part has dealt (j · size + delay) // span records.
                slots[opened + ((rank + 1) * span - delay - 1) // len(indexes)].append(index)
        dealt.append([index for slot in slots for index in (shuffled(5, slot) if slot else [])])
    found = []
    for number, each in enumerate(itertools.zip_longest(*dealt)):
        turn = drawn(6, [number])[0] % 16
        by_lane = sorted(range(lanes), key=lambda lane, turn=turn: f"{lane ^ turn:04b}"[::-1])
        found += [each[lane] for lane in by_lane if each[lane] is not None]
    return order.records[found].tolist()


def shards_of(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Record numbers with gaps between them, and where each shard begins."""
    return np.arange(sum(sizes)) * 3 + 5, np.concatenate([[0], np.cumsum(sizes)])


@pytest.mark.parametrize("sizes", [[1], [7], [5, 5, 5], [1, 12, 3, 40, 2]])
@pytest.mark.parametrize("block_size", [1, 2, 5, 64])
def test_blocks_are_those_of_the_whole_order(sizes: list[int], block_size: int) -> None:
    records, starts = shards_of(sizes)
    expected = whole_block_shuffle(records, np.repeat(np.arange(len(sizes)), sizes), block_size)
    order = BlockShuffle(records, starts, SEED, block_size)
    assert order.length == len(records)
    for start in range(len(records) + 1):
        for stop in range(start, len(records) + 1):
            np.testing.assert_array_equal(order.between(start, stop), expected[start:stop])


def test_one_shuffle_is_numpys() -> None:
    records, _ = shards_of([30])
    expected = np.random.default_rng(SEED).permutation(records)
    np.testing.assert_array_equal(RecordShuffle(records, SEED).between(4, 20), expected[4:20])


ORDERS = {
    "file": lambda records, starts: FileOrder(records),
    "records": lambda records, starts: RecordShuffle(records, SEED),
    "blocks": lambda records, starts: BlockShuffle(records, starts, SEED, 3),
    "keys": lambda records, starts: KeyShuffle(records, *SEED),
    "window": lambda records, starts: WindowShuffle(records, starts, *SEED, 3, 20),
    "large blocks": lambda records, starts: WindowShuffle(records, starts, *SEED, 12, 12),
    "one window": lambda records, starts: WindowShuffle(records, starts, *SEED, 1, 1000),
}


@pytest.mark.parametrize("kind", ORDERS)
@pytest.mark.parametrize("skipped", [(), (5,), (8, 11, 50), tuple(range(5, 80, 6))])
def test_skipped_records_are_taken_out_of_their_place(kind: str, skipped: tuple[int, ...]) -> None:
    records, starts = shards_of([9, 1, 16])
    whole = ORDERS[kind](records, starts)
    all_records = whole.between(0, whole.length)
    expected = all_records[~np.isin(all_records, skipped)]
    order = whole.without((*skipped, 10**6))  # a record that is not in the order
    assert order.length == len(expected)
    for start in range(order.length + 1):
        for stop in (start, start + 1, order.length):
            np.testing.assert_array_equal(order.between(start, min(stop, order.length)), expected[start:stop])
    np.testing.assert_array_equal(order.positions(expected), np.arange(len(expected)))


@pytest.mark.parametrize("kind", ORDERS)
def test_positions_are_those_of_the_records(kind: str) -> None:
    order: Order = ORDERS[kind](*shards_of([9, 1, 16]))
    np.testing.assert_array_equal(order.positions(order.between(0, order.length)), np.arange(order.length))


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    block_records=st.integers(1, 50),
    window=st.integers(1, 600),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 100),
    cut=st.floats(0, 1),
)
def test_windows_are_those_of_the_whole_order(
    sizes: list[int], block_records: int, window: int, seed: int, epoch: int, cut: float
) -> None:
    records, starts = shards_of(sizes)
    order = WindowShuffle(records, starts, seed, epoch, block_records, window)
    expected = whole_window_shuffle(order)
    assert sorted(expected) == records.tolist()
    middle = round(cut * len(records))
    assert order.between(0, middle).tolist() == expected[:middle]
    assert order.between(middle, len(records)).tolist() == expected[middle:]
    np.testing.assert_array_equal(order.positions(np.array(expected)), np.arange(len(records)))


@pytest.mark.parametrize(("block_records", "window"), [(5, 300), (24, 2400), (1, 100), (8, 8192)])
def test_ranges_of_a_long_window_shuffle(block_records: int, window: int) -> None:
    """More than one piece of the order, so that ranges begin and end in different ones."""
    records, starts = shards_of([700] * 20)
    order = WindowShuffle(records, starts, *SEED, block_records, window)
    expected = np.array(whole_window_shuffle(order))
    for start in range(0, 14_000, 611):
        for stop in (start, start + 1, start + 600, 14_000):
            np.testing.assert_array_equal(order.between(start, stop), expected[start:stop])
    some = expected[::37]
    np.testing.assert_array_equal(order.positions(some), np.arange(0, 14_000, 37))


def test_a_block_is_of_neighbours_of_one_shard() -> None:
    records, starts = shards_of([700, 3, 2000])
    order = WindowShuffle(records, starts, *SEED, 24, 500)
    blocks = order.together(records)
    assert np.all((blocks[:, 0] <= records) & (records <= blocks[:, 1]))
    found, counts = np.unique(blocks, axis=0, return_counts=True)
    np.testing.assert_array_equal(counts, (found[:, 1] - found[:, 0]) // 3 + 1)
    assert counts.max() == 24
    shard = np.searchsorted(records[starts[1:-1]], found, side="right")
    np.testing.assert_array_equal(shard[:, 0], shard[:, 1])
    assert len(found) <= 2703 // 24 + 2 * 3
    assert KeyShuffle(records, *SEED).together(records[:2]).tolist() == [[5, 5], [8, 8]]


def test_neighbours_change_from_epoch_to_epoch() -> None:
    records, starts = shards_of([960] * 4)
    cuts = [set(WindowShuffle(records, starts, 0, epoch, 24, 500).together(records)[:, 0]) for epoch in range(20)]
    assert len(set.union(*cuts)) > 0.4 * len(records)  # 20 × 164 blocks begin in that many places
    orders = [WindowShuffle(records, starts, 0, epoch, 24, 500).between(0, 100).tolist() for epoch in range(20)]
    assert len({tuple(order) for order in orders}) == 20


def test_a_run_of_records_comes_evenly_from_all_open_blocks() -> None:
    """Blocks of 40 in a window of 64 blocks: 16 lanes of 4. A batch of 256 has four records of each, or a neighbour."""
    records, starts = shards_of([1000] * 60)
    order = WindowShuffle(records, starts, *SEED, 40, 64 * 40)
    blocks = order.together(order.between(0, 60_000))[:, 0]
    batches = blocks[20 * 256 : 200 * 256].reshape(-1, 256)
    counts = np.array([len(np.unique(batch)) for batch in batches])
    assert counts.min() >= 60
    assert counts.max() <= 64 + 16  # blocks that begin and end in between
    first = np.unique(blocks[:64])
    assert 16 <= len(first) <= 32  # so that the first batch comes soon
    opened = {block: place for place, block in reversed(list(enumerate(blocks.tolist())))}
    closed = {block: place for place, block in enumerate(blocks.tolist())}
    long = [block for block in opened if closed[block] - opened[block] > 64 * 40 * 1.3]
    assert len(long) <= 15  # those that are divided between the end of a lane and the beginning of the next one


@pytest.mark.parametrize("skipped", [(), (5, 2000, 30_000)])
@pytest.mark.parametrize(("ranks", "batch", "most"), [(2, 64, 1.05), (4, 64, 1.05), (4, 100, 1.05), (3, 96, 1.2)])
def test_a_rank_reads_its_own_blocks(ranks: int, batch: int, most: float, skipped: tuple[int, ...]) -> None:
    records, starts = shards_of([1000] * 30)
    order = WindowShuffle(records, starts, *SEED, 40, 64 * 40).without(skipped)
    batches = order.between(0, order.length // batch * batch).reshape(-1, batch)
    parts = order.deal(batches, ranks)
    assert parts.shape == (len(batches), ranks, batch // ranks)
    np.testing.assert_array_equal(np.sort(parts.reshape(len(batches), -1)), np.sort(batches))
    for rank in range(ranks):
        own = parts[:, rank].reshape(-1)
        blocks = np.unique(order.together(own), axis=0)
        read = np.sum((blocks[:, 1] - blocks[:, 0]) // 3 + 1)
        assert read <= (most + 0.2 * bool(skipped)) * len(own)  # a gap moves the batches out of step with the rounds
        assert np.all(np.diff(order.positions(own[: 3 * batch // ranks])) > 0)
    np.testing.assert_array_equal(order.deal(batches, 1)[:, 0], batches)


@pytest.mark.parametrize(("block_records", "window"), [(40, 64 * 40), (8, 8192)])
def test_a_long_order_needs_the_blocks_in_memory_but_not_the_records(block_records: int, window: int) -> None:
    """A million records: the order itself would have 8 MB."""
    records, starts = np.arange(1_000_000), np.arange(0, 1_000_001, 1000)
    tracemalloc.start()
    order = WindowShuffle(records, starts, *SEED, block_records, window)
    order.between(0, 256)
    order.between(500_000, 500_256)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100 * 1_000_000 / block_records + 4 * 8 * 2 * window
