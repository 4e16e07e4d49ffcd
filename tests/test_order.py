"""The order of an epoch, computed range by range, against the same order computed as a whole."""

import numpy as np
import pytest

from pipelines.order import BlockShuffle, FileOrder, Order, RecordShuffle

SEED = (7, 3)


def whole_block_shuffle(records: np.ndarray, shard: np.ndarray, block_size: int) -> np.ndarray:
    """All at once, as the definition says: shards in random order, cut into blocks, blocks in random order."""
    rng = np.random.default_rng(SEED)
    within = np.lexsort((rng.random(len(records)), shard))
    first = np.searchsorted(shard, shard, side="left")
    block = np.cumsum((np.arange(len(records)) - first) % block_size == 0) - 1
    place = rng.permutation(block[-1] + 1)
    return records[within][np.argsort(place[block], kind="stable")]


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
