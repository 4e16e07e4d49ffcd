"""Repeated augmentation: each record of a batch occurs several times in it, each time with other draws."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kimagenet.recipe import Recipe
from pipelines import AugmentSpec, EpochPlan, ShardSet, UserError, open_loader
from pipelines.loader import BatchSpec
from pipelines.order.spec import ShuffleSpec
from pipelines.uniform import RecordUniform
from tests.helpers import faults
from tests.test_plan import SHUFFLES, plan

ALL_RANKS = pytest.mark.parametrize(("world_size", "repeats"), [(1, 2), (1, 4), (2, 2), (2, 4), (4, 2), (3, 4)])


@pytest.fixture(scope="module")
def train(tiny_dataset: Path) -> ShardSet:
    return ShardSet.open(tiny_dataset, "train")


def keys(part: EpochPlan) -> np.ndarray:
    """int64 [steps, batch_size, 2]: the record and its copy at each position."""
    found = part._uniform(0, len(part.records))
    copies = np.zeros_like(found.records) if found.copies is None else found.copies
    return np.stack([found.records, copies], axis=1).reshape(-1, part.batch_size, 2)


@SHUFFLES
@ALL_RANKS
def test_a_batch_has_each_of_its_records_so_many_times(
    train: ShardSet, world_size: int, repeats: int, shuffle: ShuffleSpec
) -> None:
    ranks = [
        plan(train, rank=rank, world_size=world_size, repeats=repeats, shuffle=shuffle) for rank in range(world_size)
    ]
    batches = np.concatenate([keys(rank) for rank in ranks], axis=1)
    steps = batches.reshape(len(batches), -1, 2)
    first = plan(train, batch_size=1, shuffle=shuffle).records
    width = 4 * world_size // repeats
    for step, found in enumerate(steps.tolist()):
        expected = first[step * width : (step + 1) * width].tolist()  # the next records of the order
        assert sorted(map(tuple, found)) == sorted((record, copy) for record in expected for copy in range(repeats))
    assert len(np.unique(steps.reshape(-1, 2), axis=0)) == len(steps.reshape(-1, 2))  # ranks are disjoint


@SHUFFLES
def test_copies_are_on_different_ranks_and_not_side_by_side(train: ShardSet, shuffle: ShuffleSpec) -> None:
    for rank in range(4):
        part = plan(train, rank=rank, world_size=4, repeats=4, shuffle=shuffle)
        assert all(max(Counter(row).values()) == 1 for row in part.records.reshape(-1, 4).tolist())
    alone = plan(train, batch_size=12, repeats=4, shuffle=shuffle).records.reshape(-1, 12)
    assert np.all(alone != np.roll(alone, 1, axis=1))


def test_an_epoch_has_as_many_steps_as_without(train: ShardSet) -> None:
    whole, repeated = plan(train), plan(train, repeats=4)
    assert repeated.steps_per_epoch == whole.steps_per_epoch == 25
    assert (whole.dropped_records, repeated.dropped_records) == (1, 101 - 25)
    seen = np.concatenate([plan(train, repeats=4, epoch=epoch).records for epoch in range(30)])
    assert len(np.unique(seen)) == train.num_records


@SHUFFLES
def test_start_step_and_skipped_records(train: ShardSet, shuffle: ShuffleSpec) -> None:
    fields = {"repeats": 2, "rank": 1, "world_size": 2, "shuffle": shuffle}
    whole = plan(train, **fields)
    for start in (0, 3, whole.steps_per_epoch):
        tail = plan(train, start_step=start, **fields)
        np.testing.assert_array_equal(tail.records, whole.records[start * 4 :])
        np.testing.assert_array_equal(tail.draws.affine, whole.draws.affine[start * 4 :])
    order = plan(train, batch_size=1, shuffle=shuffle).records
    skipped = tuple(sorted(order[[9, 10]].tolist()))
    rest = [plan(train, **{**fields, "rank": rank, "skipped": skipped}) for rank in range(2)]
    steps = np.concatenate([keys(part) for part in rest], axis=1)
    left = np.delete(order, [9, 10])
    for step, found in enumerate(steps.tolist()):
        assert {record for record, _ in found} == set(left[step * 4 : (step + 1) * 4].tolist())
    parts = [rest[1].draw(start, start + 3).affine for start in range(0, 12, 3)]  # not at the beginning of a step
    np.testing.assert_array_equal(np.concatenate(parts), rest[1].draw(0, 12).affine)


def test_each_copy_has_its_own_draws_and_the_first_ones_are_those_of_before(train: ShardSet) -> None:
    repeated = plan(train, batch_size=8, repeats=4, augment=AugmentSpec.trivial())
    once = plan(train, batch_size=1, augment=AugmentSpec.trivial())
    place = {record: position for position, record in enumerate(once.records.tolist())}
    found, draws, tones = keys(repeated).reshape(-1, 2), repeated.draws, repeated.tones(0, len(repeated.records))
    by_key = {}
    for position, (record, copy) in enumerate(found.tolist()):
        by_key[record, copy] = draws.affine[position].tobytes()
        if copy == 0:
            np.testing.assert_array_equal(draws.affine[position], once.draws.affine[place[record]])
            np.testing.assert_array_equal(tones[position], once.tones(place[record], place[record] + 1)[0])
    assert len(set(by_key.values())) == len(by_key)


def test_numbers_of_copies() -> None:
    records = np.array([4, 4, 9, 4])
    uniform = RecordUniform(3, 7, records, np.array([0, 1, 2, 2]))
    assert len(set(uniform(2).tolist())) == 4
    assert uniform(2)[0] == RecordUniform(3, 7, records)(2)[0]
    np.testing.assert_array_equal(uniform.select(np.array([3, 0]))(2), uniform(2)[[3, 0]])
    np.testing.assert_array_equal(uniform.select(records == 9)(2), uniform(2)[[2]])
    many = np.arange(100_000)
    pair = [RecordUniform(3, 7, many, np.full(len(many), copy))(2) for copy in (0, 1)]
    assert abs(np.corrcoef(pair)[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"repeats": 0}, "repeats must be positive, not 0"),
        ({"repeats": 3}, "a batch of 4 is no multiple of 3 repeats"),
        ({"repeats": 2, "augment": AugmentSpec.evaluation()}, "an evaluation has no repeats"),
    ],
)
def test_wrong_values_are_refused(train: ShardSet, wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(train, **wrong)
    with pytest.raises(UserError, match="repeats must be at least 1, not 0"):
        Recipe(repeats=0)


@pytest.mark.slow
def test_loaders_read_records_again(train: ShardSet) -> None:
    from pipelines.loaders import dali

    names = ["tfdata"] if dali.unavailable("cpu") else ["tfdata", "dali"]
    read = []
    for name in names:
        options = {"workers": 1, "device": "cpu", "strict": True, "repeats": 3}
        with open_loader(name, train, BatchSpec(6, 32), AugmentSpec.standard(), **options) as loader:
            batches = [[part.numpy() for part in batch] for batch in loader.batches(1)]
            read.append([np.concatenate(parts) for parts in zip(*batches, strict=True)])
            numbers = loader.plan(1).records
    labels = [train.read(record).label - train.label_base for record in numbers.tolist()]
    assert read[0][1].tolist() == labels
    first = read[0][0].reshape(-1, 3, 2, 32, 32, 3)
    assert np.all(np.abs(first[:, 0] - first[:, 1]).mean(axis=(2, 3, 4)) > 0)  # other crops of the same record
    assert labels[0:2] == labels[2:4] == labels[4:6]
    for images, other in read[1:]:
        assert np.abs(images - read[0][0]).mean() < 0.002
        assert other.tolist() == labels


@pytest.mark.slow
def test_a_corrupt_record_that_is_repeated_is_skipped_once(tiny_dataset: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    from kimagenet.training.feed import open_feed
    from kimagenet.training.recovery import SkippedRecords

    shards = ShardSet.open(faults.copy_dataset(tiny_dataset, tmp_path / "shards"), "train")
    corrupt = SkippedRecords("skip", 1)
    options = {"corrupt": corrupt, "repeats": 2, "workers": 1}
    batch = BatchSpec(8, 16)
    with open_feed(tf.distribute.get_strategy(), "tfdata", shards, batch, AugmentSpec(flip=0.5), **options) as feed:
        bad = int(feed.loaders[0].plan(0).records[10])
        assert len(feed.records(0, 1)) == 4
        faults.corrupt(shards, {bad}, "image head")
        assert len(list(feed.epoch(0))) == 12
        assert corrupt.of("train") == [bad]
        assert bad not in feed.loaders[0].plan(0).records
