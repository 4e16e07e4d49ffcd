"""Balanced sampling: as many records of each class in an epoch, the same for all loaders, ranks and resumed runs."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines import AugmentSpec, BatchSpec, EpochPlan, ShardSet, UserError, open_loader
from pipelines.order.balanced import BalancedOrder
from pipelines.order.spec import ShuffleSpec
from pipelines.shards.index import scan, write_index
from tests.helpers.data import NUM_CLASSES, TRAIN_RECORDS

BALANCED = ShuffleSpec(is_balanced=True)
FEW = (1, 2, 5)  # records of the first three classes; the others have all of theirs


@pytest.fixture(scope="module")
def train(tiny_dataset: Path) -> ShardSet:
    """A split whose first classes have few usable records."""
    whole = ShardSet.open(tiny_dataset, "train")
    left_out = [np.flatnonzero(whole.labels == label)[count:] for label, count in enumerate(FEW)]
    return dataclasses.replace(whole, usable=np.setdiff1d(whole.usable, np.concatenate(left_out)))


def plan(shards: ShardSet, **fields) -> EpochPlan:
    chosen = {"augment": AugmentSpec.train(), "batch_size": 4, "image_size": 32, "shuffle": BALANCED}
    return EpochPlan(shards, **chosen | fields)


def order(labels: list[int], epoch: int = 0, skipped: tuple[int, ...] = ()) -> BalancedOrder:
    """An order of the records 10, 11, … with these labels."""
    return BalancedOrder(np.arange(10, 10 + len(labels)), np.array(labels), 100, 7, epoch, skipped)


def test_labels_are_those_of_the_records(tiny_dataset: Path, train: ShardSet) -> None:
    whole = ShardSet.open(tiny_dataset, "train")
    stored = [whole.read(record).label - whole.label_base for record in range(whole.num_records)]
    assert whole.labels.dtype == np.int32
    assert whole.labels.tolist() == stored
    assert (train.labels == -1).sum() == TRAIN_RECORDS - len(train.usable)
    np.testing.assert_array_equal(train.labels[train.usable], whole.labels[train.usable])


def test_an_epoch_by_hand() -> None:
    """Seven records of the classes 0 (five), 2 (one) and 3 (one): two positions each, and one more for one class."""
    for epoch in range(20):
        picks = order([0, 0, 2, 0, 3, 0, 0], epoch).between(0, 7)
        records, copies = picks % 100, picks // 100
        rare = {12: np.count_nonzero(records == 12), 14: np.count_nonzero(records == 14)}
        assert sorted([*rare.values(), 7 - sum(rare.values())]) == [2, 2, 3]
        for record, count in rare.items():
            assert sorted(copies[records == record]) == list(range(count))
        frequent = picks[~np.isin(records, [12, 14])]
        assert len(np.unique(frequent)) == len(frequent)
        assert frequent.max() < 100


def test_the_order_never_changes() -> None:
    """A run that continues under another release gets the same records."""
    labels = [0, 0, 1, 0, 2, 0, 0, 1]
    assert order(labels, 3).between(0, 8).tolist() == [14, 10, 214, 114, 13, 12, 15, 17]
    # Record 14 is alone in its class: with it, the class is gone, and the next record of all comes in its place.
    assert order(labels, 3, (12, 14)).between(0, 8).tolist() == [313, 10, 513, 413, 13, 317, 15, 17]


def test_each_class_has_as_many_records(train: ShardSet) -> None:
    for epoch in range(3):
        records = plan(train, batch_size=1, epoch=epoch).records
        counts = np.bincount(train.labels[records], minlength=NUM_CLASSES)
        assert len(records) == len(train.usable)
        assert counts.max() - counts.min() <= 1
        times = np.bincount(records, minlength=train.num_records)
        for label in range(NUM_CLASSES):
            of_class = times[train.labels == label]
            assert of_class.max() - of_class.min() <= 1
        assert times[np.setdiff1d(np.arange(train.num_records), train.usable)].sum() == 0


def test_every_record_of_a_large_class_comes_in_some_epoch() -> None:
    labels = [0] * 30 + [1, 2]
    seen = {pick % 100 for epoch in range(20) for pick in order(labels, epoch).between(0, 32).tolist()}
    assert seen == set(range(10, 42))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_divide_each_batch(train: ShardSet, world_size: int) -> None:
    alone = plan(train, batch_size=12).records.reshape(-1, 12)
    parts = [plan(train, batch_size=12 // world_size, world_size=world_size, rank=rank) for rank in range(world_size)]
    together = np.concatenate([part.records.reshape(len(alone), -1) for part in parts], axis=1)
    np.testing.assert_array_equal(together, alone)


def test_a_start_in_the_middle_gives_the_rest(train: ShardSet) -> None:
    whole, rest = plan(train, epoch=2), plan(train, epoch=2, start_step=5)
    np.testing.assert_array_equal(rest.records, whole.records[5 * 4 :])
    np.testing.assert_array_equal(rest.draws.affine, whole.draws.affine[5 * 4 :])
    other = plan(train, epoch=3)
    assert not np.array_equal(other.records, whole.records)


def test_each_copy_of_a_record_has_other_draws(train: ShardSet) -> None:
    whole = plan(train, batch_size=1)
    (only,) = train.usable[train.labels[train.usable] == 0]
    places = np.flatnonzero(whole.records == only)
    assert len(places) >= len(train.usable) // NUM_CLASSES
    assert len(np.unique(whole.draws.affine[places], axis=0)) == len(places)
    plain = plan(train, batch_size=1, shuffle=ShuffleSpec())
    first = whole.draws.affine[places] == plain.draws.affine[plain.records == only]
    assert first.all(axis=(1, 2)).sum() == 1  # copy 0 is as without balanced sampling


def test_a_skipped_record_is_replaced_by_others_of_its_class(train: ShardSet) -> None:
    before = plan(train, batch_size=1)
    pair, many = (train.usable[train.labels[train.usable] == label] for label in (1, 5))
    skipped = (int(pair[0]), int(many[2]))
    assert np.isin(skipped, before.records).any()
    after = plan(train, batch_size=1, skipped=skipped)
    kept = len(after.records)
    assert kept == len(train.usable) - len(set(skipped))
    is_kept = ~np.isin(before.records[:kept], skipped)
    np.testing.assert_array_equal(after.records[is_kept], before.records[:kept][is_kept])
    assert not np.isin(after.records, skipped).any()
    np.testing.assert_array_equal(train.labels[after.records], train.labels[before.records[:kept]])


def test_a_class_without_any_record_left_is_replaced_by_others() -> None:
    picks = order([0, 0, 1, 0], skipped=(12,)).between(0, 4)
    assert not np.isin(picks % 100, [12]).any()
    assert len(picks) == 4


def test_positions() -> None:
    found = order([0, 0, 0, 0, 0, 1], skipped=(13,))
    picked = (found.between(0, 6) % 100).tolist()
    expected = [picked.index(record) if record in picked else 6 for record in range(10, 16)]
    assert found.positions(np.arange(10, 16)).tolist() == expected


def test_an_evaluation_stays_as_it_is(train: ShardSet) -> None:
    found = plan(train, augment=AugmentSpec.evaluation(), batch_size=1)
    np.testing.assert_array_equal(found.records, train.usable)


def test_it_has_no_window_and_its_own_digest(train: ShardSet) -> None:
    chosen = BALANCED.resolved(train)
    assert (chosen.window, chosen.block_records, chosen.is_balanced) == (0, 1, True)
    assert BALANCED.digest(train, 0) != ShuffleSpec().digest(train, 0)
    with pytest.raises(UserError, match="balanced sampling takes single records from anywhere, so it has no window"):
        ShuffleSpec(window=100, is_balanced=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shards, base: dataclasses.replace(shards, label_base=base + 1), "which is no class; run `"),
        (lambda shards, base: dataclasses.replace(shards, classes=shards.classes[:-1]), "has label 10, which is no"),
    ],
)
def test_a_wrong_label_is_named(damage, message: str, tiny_dataset: Path) -> None:
    shards = ShardSet.open(tiny_dataset, "train")
    with pytest.raises(UserError, match=message):
        _ = damage(shards, shards.label_base).labels


def test_a_record_that_cannot_be_read_is_named(tiny_dataset: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_dataset, tmp_path / "shards"))
    path = folder / "train-00001-of-00003"
    data = bytearray(path.read_bytes())
    first = scan(path)
    data[12:20] = b"\xff" * 8  # within the first record
    path.write_bytes(data)
    write_index(path, first)
    with pytest.raises(UserError, match=r"train-00001-of-00003: the record at byte 0: .*; leave it out: `"):
        _ = ShardSet.open(folder, "train").labels
    path.unlink()
    shards = ShardSet.open(tiny_dataset, "train")
    gone = dataclasses.replace(shards, paths=tuple(folder / known.name for known in shards.paths))
    with pytest.raises(UserError, match="train-00001-of-00003: No such file"):
        _ = gone.labels


@pytest.mark.slow
def test_both_loaders_follow_it(train: ShardSet) -> None:
    from pipelines.loaders import dali

    if (problem := dali.unavailable("cpu")) is not None:
        pytest.skip(f"no DALI to compare with: {problem}")
    found = {}
    for name in ("dali", "tfdata"):
        options = {"workers": 1, "device": "cpu", "strict": True, "shuffle": BALANCED, "seed": 3}
        with open_loader(name, train, BatchSpec(8, 32), AugmentSpec.train(), **options) as loader:
            batches = [[part.numpy() for part in batch] for batch in loader.batches(1)]
        found[name] = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    wanted = plan(train, batch_size=8, epoch=1, seed=3).records
    for _, labels in found.values():
        np.testing.assert_array_equal(labels, train.labels[wanted])
    assert np.abs(found["dali"][0] - found["tfdata"][0]).mean() * 127.5 < 0.5
