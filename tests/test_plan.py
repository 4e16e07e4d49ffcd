"""EpochPlan: the order of records, their parts for each rank, and their draws, with and without blocks."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pipelines import AugmentSpec, EpochPlan, ShardSet, UserError
from pipelines.order.first import BlockShuffle
from pipelines.order.spec import ShuffleSpec
from tests.helpers.synthetic_shards import synthetic_shards

BATCH = 4
SHUFFLES = pytest.mark.parametrize(
    "shuffle",
    [
        ShuffleSpec(),
        ShuffleSpec(window=40, block_records=5),
        ShuffleSpec(window=10),
        ShuffleSpec(1),
        ShuffleSpec(1, block_records=5),
    ],
    ids=str,
)


@pytest.fixture(scope="module")
def train(tiny_dataset: Path) -> ShardSet:
    return ShardSet.open(tiny_dataset, "train")


@pytest.fixture(scope="module")
def validation(tiny_dataset: Path) -> ShardSet:
    return ShardSet.open(tiny_dataset, "validation")


def plan(shards: ShardSet, **fields) -> EpochPlan:
    return EpochPlan(shards, **{"augment": AugmentSpec.train(), "batch_size": BATCH, "image_size": 32} | fields)


@pytest.mark.parametrize(
    ("records", "batch_size", "rank", "world_size", "start_step", "expected"),
    [
        (8, 2, 0, 1, 0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, 2, 0, 2, 0, [0, 1, 4, 5]),
        (8, 2, 1, 2, 0, [2, 3, 6, 7]),
        (8, 2, 1, 2, 1, [6, 7]),
        (8, 2, 1, 2, 2, []),
        (8, 1, 2, 4, 0, [2, 6]),
        (10, 2, 1, 2, 0, [2, 3, 6, 7]),  # 8 and 9 are dropped
        (10, 4, 0, 1, 0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (7, 2, 1, 2, 0, [2, 3]),
    ],
)
def test_positions_of_the_shuffled_order(
    train: ShardSet, records: int, batch_size: int, rank: int, world_size: int, start_step: int, expected: list[int]
) -> None:
    few = dataclasses.replace(train, usable=np.arange(records))
    order = plan(few, batch_size=1).records
    found = plan(few, batch_size=batch_size, rank=rank, world_size=world_size, start_step=start_step)
    assert found.records.tolist() == order[expected].tolist()
    assert found.weights.tolist() == [1] * len(expected)


@pytest.mark.parametrize(
    ("records", "batch_size", "rank", "world_size", "expected", "weights"),
    [
        (8, 2, 1, 2, [2, 3, 6, 7], [1, 1, 1, 1]),
        (7, 2, 0, 2, [0, 1, 4, 5], [1, 1, 1, 1]),
        (7, 2, 1, 2, [2, 3, 6, 6], [1, 1, 1, 0]),
        (5, 2, 1, 2, [2, 3, 4, 4], [1, 1, 0, 0]),
        (1, 2, 0, 1, [0, 0], [1, 0]),
    ],
)
def test_evaluation_positions_of_the_file_order(
    train: ShardSet,
    records: int,
    batch_size: int,
    rank: int,
    world_size: int,
    expected: list[int],
    weights: list[int],
) -> None:
    few = dataclasses.replace(train, usable=np.arange(records))
    found = plan(few, augment=AugmentSpec.evaluation(), batch_size=batch_size, rank=rank, world_size=world_size)
    assert found.records.tolist() == expected
    assert found.weights.tolist() == weights


@SHUFFLES
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_are_disjoint_and_complete(train: ShardSet, world_size: int, shuffle: ShuffleSpec) -> None:
    for epoch in range(2):
        ranks = [
            plan(train, rank=rank, world_size=world_size, epoch=epoch, shuffle=shuffle) for rank in range(world_size)
        ]
        seen = np.concatenate([rank.records for rank in ranks])
        assert len(np.unique(seen)) == len(seen)
        assert len(seen) == train.num_records - ranks[0].dropped_records
        assert ranks[0].dropped_records < BATCH * world_size


@SHUFFLES
def test_the_global_batch_does_not_depend_on_the_world_size(train: ShardSet, shuffle: ShuffleSpec) -> None:
    alone = plan(train, batch_size=12, shuffle=shuffle).records.reshape(-1, 12)
    for world_size in (2, 3):
        fields = {"batch_size": 12 // world_size, "world_size": world_size, "shuffle": shuffle}
        ranks = [plan(train, rank=rank, **fields) for rank in range(world_size)]
        together = np.concatenate([rank.records.reshape(-1, 12 // world_size) for rank in ranks], axis=1)
        if not shuffle.window:
            np.testing.assert_array_equal(together, alone)
        np.testing.assert_array_equal(np.sort(together), np.sort(alone))  # blocks decide which rank reads a record


@SHUFFLES
def test_start_step_gives_the_tail(train: ShardSet, shuffle: ShuffleSpec) -> None:
    whole = plan(train, shuffle=shuffle, rank=1, world_size=2)
    for start in (0, 1, 5, whole.steps_per_epoch):
        tail = plan(train, shuffle=shuffle, rank=1, world_size=2, start_step=start)
        np.testing.assert_array_equal(tail.records, whole.records[start * BATCH :])
        for name in ("affine", "colour", "box"):
            np.testing.assert_array_equal(getattr(tail.draws, name), getattr(whole.draws, name)[start * BATCH :])


@SHUFFLES
def test_epochs_and_seeds_differ_and_repeat(train: ShardSet, shuffle: ShuffleSpec) -> None:
    base = plan(train, shuffle=shuffle)
    np.testing.assert_array_equal(plan(train, shuffle=shuffle).records, base.records)
    for other in (plan(train, epoch=1, shuffle=shuffle), plan(train, seed=1, shuffle=shuffle)):
        assert not np.array_equal(other.records, base.records)
        assert not np.array_equal(other.draws.affine, base.draws.affine)


@SHUFFLES
def test_every_record_is_dropped_sometimes(train: ShardSet, shuffle: ShuffleSpec) -> None:
    seen = np.zeros(train.num_records, int)
    for epoch in range(40):
        seen[plan(train, batch_size=10, epoch=epoch, shuffle=shuffle).records] += 1
    assert plan(train, batch_size=10).dropped_records == 1
    assert seen.min() >= 35
    assert seen.sum() == 40 * 100


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 36, 37, 38, 100])
def test_evaluation_sees_every_record_once(validation: ShardSet, batch_size: int, world_size: int) -> None:
    ranks = [
        plan(validation, augment=AugmentSpec.evaluation(), batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    weighted = np.concatenate([rank.records[rank.weights == 1] for rank in ranks])
    np.testing.assert_array_equal(np.sort(weighted), np.arange(validation.num_records))
    assert sum(float(rank.weights.sum()) for rank in ranks) == validation.num_records
    assert len({len(rank.records) for rank in ranks}) == 1
    assert ranks[0].dropped_records == 0


@pytest.mark.parametrize("block_size", [2, 25])
def test_blocks_keep_their_records_together_and_are_shuffled(block_size: int) -> None:
    order = BlockShuffle(np.arange(800), np.arange(0, 801, 100), (0,), block_size).between(0, 800)
    np.testing.assert_array_equal(np.sort(order), np.arange(800))
    assert all(len(set(block // 100)) == 1 for block in order.reshape(-1, block_size))
    assert (np.diff(order) == 1).mean() < 0.02
    assert len(set((order.reshape(-1, block_size)[:8, 0] // 100).tolist())) > 3


def test_a_block_ends_with_its_shard() -> None:
    order = BlockShuffle(np.arange(200), np.arange(0, 201, 10), (0,), 25).between(0, 200)
    rows = order.reshape(20, 10) // 10
    assert np.all(rows == rows[:, :1])
    assert sorted(rows[:, 0]) == list(range(20))
    first_of_two = {int(BlockShuffle(np.arange(2), np.arange(3), (s,), 25).between(0, 1)[0]) for s in range(20)}
    assert first_of_two == {0, 1}


@pytest.mark.parametrize(("records", "block_records"), [(50_000, 1), (50_001, 32)])
def test_many_records_of_an_earlier_run_are_shuffled_in_blocks(records: int, block_records: int) -> None:
    many = synthetic_shards(records, 50)
    by_default = plan(many, shuffle=ShuffleSpec(1)).records
    for other in (1, 31, 32, 33):
        same = np.array_equal(plan(many, shuffle=ShuffleSpec(1, block_records=other)).records, by_default)
        assert same == (other == block_records)


@SHUFFLES
def test_a_shuffle_has_no_memory_of_file_order(train: ShardSet, shuffle: ShuffleSpec) -> None:
    """Spearman's rank correlation of place and record number, over epochs: about 0, not 1."""
    orders = [plan(train, epoch=epoch, shuffle=shuffle).records for epoch in range(30)]
    correlations = [np.corrcoef(order, np.arange(len(order)))[0, 1] for order in orders]
    assert abs(np.mean(correlations)) < 0.08
    assert max(np.abs(correlations)) < 0.4


def test_a_quarantined_record_changes_nothing_for_the_others(train: ShardSet) -> None:
    fewer = dataclasses.replace(train, usable=np.delete(train.usable, [7, 20]))
    whole, rest = plan(train, batch_size=1), plan(fewer, batch_size=1)
    assert set(rest.records.tolist()) == set(range(train.num_records)) - {7, 20}
    at = {record: place for place, record in enumerate(whole.records)}
    same = [at[record] for record in rest.records]
    np.testing.assert_array_equal(rest.draws.affine, whole.draws.affine[same])


@SHUFFLES
@pytest.mark.parametrize("world_size", [1, 2])
def test_records_before_the_first_skipped_one_keep_their_places(
    train: ShardSet, world_size: int, shuffle: ShuffleSpec
) -> None:
    whole = plan(train, batch_size=1, shuffle=shuffle).records
    skipped = tuple(sorted(whole[[30, 31, 77]].tolist()))
    fields = {"world_size": world_size, "shuffle": shuffle, "skipped": skipped}
    ranks = [plan(train, rank=rank, **fields) for rank in range(world_size)]
    batches = np.concatenate([rank.records.reshape(-1, BATCH) for rank in ranks], axis=1)
    order = batches.reshape(-1)
    expected = np.delete(whole, [30, 31, 77])
    if world_size == 1:
        np.testing.assert_array_equal(order, expected[: len(order)])
    np.testing.assert_array_equal(np.sort(batches), np.sort(expected[: len(order)].reshape(batches.shape)))
    assert ranks[0].dropped_records == len(expected) - len(order) < BATCH * world_size
    tail = plan(train, start_step=5, **fields)
    np.testing.assert_array_equal(tail.records, ranks[0].records[5 * BATCH :])


def test_evaluation_pads_what_is_left_of_skipped_records(validation: ShardSet) -> None:
    last = validation.num_records - 1
    found = plan(validation, augment=AugmentSpec.evaluation(), skipped=(0, last))
    np.testing.assert_array_equal(found.records[found.weights == 1], np.arange(1, last))
    assert set(found.records[found.weights == 0]) == {last - 1}
    with pytest.raises(UserError, match=r"0 records in the validation split, without 37 corrupt ones, do not fill"):
        plan(validation, augment=AugmentSpec.evaluation(), skipped=tuple(range(last + 1)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"batch_size": 102},
        {"batch_size": 60, "world_size": 2},
        {"rank": 2, "world_size": 2},
        {"rank": -1},
        {"start_step": -1},
        {"start_step": 26},
        {"epoch": -1},
        {"image_size": 0},
    ],
)
def test_wrong_values_are_refused(train: ShardSet, wrong: dict) -> None:
    with pytest.raises(UserError, match="plan"):
        plan(train, **wrong)


def test_too_few_records_for_a_batch_are_an_error_with_a_remedy(train: ShardSet) -> None:
    with pytest.raises(UserError) as caught:
        plan(train, batch_size=60, world_size=2)
    assert caught.value.what == "plan: 101 records in the train split do not fill one batch of 60 × 2"
    assert (caught.value.remedy, caught.value.setting) == ("choose a smaller batch_size", "batch_size")


def test_a_plan_says_what_is_read_together(train: ShardSet, validation: ShardSet) -> None:
    windows = plan(train, shuffle=ShuffleSpec(window=40, block_records=5), skipped=(3,))
    blocks = windows.together(windows.records)
    assert np.all((blocks[:, 0] <= windows.records) & (windows.records <= blocks[:, 1]))
    assert 0 < np.max(blocks[:, 1] - blocks[:, 0]) < 5
    for single in (plan(train), plan(validation, augment=AugmentSpec.evaluation())):
        np.testing.assert_array_equal(single.together(single.records), np.stack([single.records] * 2, axis=1))
