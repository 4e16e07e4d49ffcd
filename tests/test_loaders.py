"""The contract of all loaders. Those that read pixels agree with each other and with `tests.helpers.oracle`."""

import gc
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from pipelines import AugmentSpec, BatchSpec, Loader, ShardSet, ShuffleSpec, UserError, open_loader
from pipelines.loaders import dali, names
from pipelines.loaders.dali import index_files, native, plan_folder
from pipelines.loaders.dali import loader as dali_loader
from pipelines.loaders.dali.plan_folder import PlanFolder
from pipelines.policy import Policy
from pipelines.shards.records import ENCODED, LABEL, decode_example
from pipelines.stream import Segment
from pipelines.uniform import RecordUniform
from tests.helpers import oracle
from tests.helpers.data import TRAIN_RECORDS, VALIDATION_RECORDS
from tests.helpers.programs import run_program

DALI_PROBLEM = dali.unavailable("cpu")
needs_dali = pytest.mark.skipif(DALI_PROBLEM is not None, reason=f"no DALI: {DALI_PROBLEM}")
ALL = [pytest.param(name, marks=needs_dali) if name == "dali" else name for name in names()]
READING = [parameter for parameter in ALL if parameter != "synthetic"]
# DALI's own operators replace our CPU operator if it cannot be compiled.
PIXELS = [*READING, pytest.param("dali, stock operators", marks=needs_dali)]
EVERY_KIND = AugmentSpec(
    crop_area=(0.3, 1.0),
    crop_aspect=(0.6, 1.7),
    flip=0.5,
    rotation=40.0,
    rotation_probability=0.7,
    brightness=0.2,
    contrast=(0.7, 1.4),
    saturation=(0.0, 2.0),
    hue=60.0,
)
STANDARD = {"crop_area": (0.08, 1.0), "crop_aspect": (3 / 4, 4 / 3), "flip": 0.5}
SPECS = {
    "full": AugmentSpec.train(),
    "standard": AugmentSpec.standard(),
    "everything": EVERY_KIND,
    "policy": AugmentSpec(**STANDARD, policy=Policy(count=3)),
    "evaluation": AugmentSpec.evaluation(),
    "evaluation as the original": AugmentSpec.evaluation(1.0),
}


@pytest.fixture(scope="module")
def train(tiny_dataset: Path) -> ShardSet:
    return ShardSet.open(tiny_dataset, "train")


@pytest.fixture(scope="module")
def validation(tiny_dataset: Path) -> ShardSet:
    return ShardSet.open(tiny_dataset, "validation")


def opened(name: str, shards: ShardSet, batch_size: int = 8, dtype: str = "float32", **options) -> Loader:
    options = {"augment": AugmentSpec.train(), "workers": 2, "device": "cpu", "strict": True} | options
    return open_loader(name, shards, BatchSpec(batch_size, 48, dtype), **options)


def read(loader: Loader, epoch: int = 0, start_step: int = 0) -> list[np.ndarray]:
    """The whole epoch, one array per part of the batch."""
    batches = [[part.numpy() for part in batch] for batch in loader.epoch(epoch, start_step)]
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def record(shards: ShardSet, number: int) -> tuple[bytes, int]:
    """A record's JPEG and label, read without the loaders."""
    start = int(shards.offsets[number])
    data = shards.paths[shards.shard[number]].read_bytes()[start : start + int(shards.lengths[number])]
    example = decode_example(memoryview(data[12:-4]))
    return bytes(example[ENCODED]), int(example[LABEL]) - shards.label_base


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_training_batches_are_as_the_contract_says(train: ShardSet, name: str, dtype: str) -> None:
    with opened(name, train, dtype=dtype) as loader:
        assert loader.name == name
        assert loader.device == "cpu"
        assert loader.steps_per_epoch == TRAIN_RECORDS // 8
        assert loader.dropped_records == TRAIN_RECORDS % 8
        dataset = loader.epoch(0)
        assert int(dataset.cardinality()) == loader.steps_per_epoch
        count = 0
        for images, labels in dataset:
            count += 1
            assert images.shape == (8, 48, 48, 3)
            assert images.dtype == dtype
            assert labels.shape == (8,)
            assert labels.dtype == tf.int32
            low, high = (0, 255) if dtype == "uint8" else (-1, 1)
            assert low <= images.numpy().min() < images.numpy().max() <= high
            assert 0 <= labels.numpy().min() <= labels.numpy().max() < train.num_classes
        assert count == loader.steps_per_epoch


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch_size", [8, 37, 50])
def test_evaluation_covers_every_record_once(validation: ShardSet, name: str, batch_size: int) -> None:
    with opened(name, validation, batch_size, augment=AugmentSpec.evaluation()) as loader:
        _, labels, weights = read(loader)
        assert weights.dtype == np.float32
        assert len(labels) == loader.steps_per_epoch * batch_size
        assert weights.sum() == VALIDATION_RECORDS
        if name != "synthetic":
            wanted = [record(validation, number)[1] for number in range(VALIDATION_RECORDS)]
            np.testing.assert_array_equal(labels[weights == 1], wanted)


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_labels_follow_the_plan_record_for_record(train: ShardSet, name: str, world_size: int) -> None:
    truth = np.array([record(train, number)[1] for number in range(TRAIN_RECORDS)])
    for rank in range(world_size):
        with opened(name, train, rank=rank, world_size=world_size, seed=5) as loader:
            for epoch in range(2):
                _, labels = read(loader, epoch)
                np.testing.assert_array_equal(labels, truth[loader.plan(epoch).records])


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize(
    "shuffle", [ShuffleSpec(1, block_records=3), ShuffleSpec(window=40, block_records=5)], ids=["version 1", "window"]
)
def test_small_blocks_keep_the_order(train: ShardSet, name: str, shuffle: ShuffleSpec) -> None:
    truth = np.array([record(train, number)[1] for number in range(TRAIN_RECORDS)])
    seen = []
    for rank in range(2):
        with opened(name, train, rank=rank, world_size=2, shuffle=shuffle) as loader:
            _, labels = read(loader)
            np.testing.assert_array_equal(labels, truth[loader.plan(0).records])
            seen.extend(loader.plan(0).records)
            images, tail = read(loader, start_step=4)
            np.testing.assert_array_equal(tail, labels[32:])
            np.testing.assert_array_equal(images, read(loader)[0][32:])
    assert len(set(seen)) == len(seen) == TRAIN_RECORDS // 16 * 16


@pytest.mark.parametrize("name", READING)
def test_start_step_gives_exactly_the_tail(train: ShardSet, name: str) -> None:
    with opened(name, train) as loader:
        images, labels = read(loader, 1)
        for start in (1, 7, loader.steps_per_epoch - 1):
            tail_images, tail_labels = read(loader, 1, start)
            np.testing.assert_array_equal(tail_images, images[8 * start :])
            np.testing.assert_array_equal(tail_labels, labels[8 * start :])
        assert len(list(loader.epoch(1, loader.steps_per_epoch))) == 0


@pytest.mark.parametrize("name", READING)
def test_batches_are_those_of_the_epochs_opened_ahead(train: ShardSet, name: str) -> None:
    with opened(name, train) as loader:
        for epoch, start in ((0, 5), (1, 0), (2, 0), (1, 3)):  # in order, and back again
            found = [images.numpy() for images, _ in loader.batches(epoch, start)]
            np.testing.assert_array_equal(np.concatenate(found), read(loader, epoch, start)[0])


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("spec", SPECS)
def test_pixels_agree_with_the_oracle(
    train: ShardSet, name: str, dtype: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Differences are in grey levels of 0…255. uint8 rounds; float16 has steps of 1/2048 near ±1; DALI's stock warp
    rounds to whole grey levels, an error of at most 0.5 that the colour matrix can increase.
    """
    stock = name.endswith("stock operators")
    if stock:
        monkeypatch.setattr(native, "available", lambda: False)
        name = "dali"
    augment = SPECS[spec]
    with opened(name, train, augment=augment, dtype=dtype) as loader:
        images = read(loader)[0].astype(np.float64)
        numbers = loader.plan(0).records
    if dtype != "uint8":
        images = (images + 1) * 127.5
    uniform = RecordUniform(0, 0, numbers)
    table = {column: uniform(column) for column in range(oracle.COLUMNS)}
    differences = []
    for place, number in enumerate(numbers):
        u = {column: float(values[place]) for column, values in table.items()}
        differences.append(np.abs(images[place] - oracle.expected(record(train, number)[0], augment, u, 48)))
    exact = dtype == "float32" and not stock
    assert np.mean(differences) < (0.02 if exact else 0.5)
    assert np.max(np.mean(differences, axis=(1, 2, 3))) < (0.1 if exact else 1.0)
    assert np.max(differences) < (0.5 if exact else 8)


@pytest.mark.parametrize("name", READING)
def test_the_augmentation_changes_from_epoch_to_epoch_and_with_the_seed(train: ShardSet, name: str) -> None:
    with opened(name, train) as one, opened(name, train, seed=1) as two:
        first = read(one)[0]
        assert np.array_equal(first, read(one)[0])
        assert not np.array_equal(first, read(one, 1)[0])
        assert not np.array_equal(first, read(two)[0])


@needs_dali
@pytest.mark.parametrize("compiler", ["true", "false", "no-such-compiler"])
def test_without_the_cpu_operator_stock_operators_take_over(
    train: ShardSet,
    compiler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    native.unavailable.cache_clear()
    try:
        with caplog.at_level(logging.WARNING), opened("dali", train) as loader:
            assert len(read(loader)[1]) == loader.steps_per_epoch * 8
        assert "stock operators" in caplog.text
        assert not list(tmp_path.rglob("*.so"))
    finally:
        native.unavailable.cache_clear()


@pytest.mark.parametrize("name", ALL)
def test_a_dataset_outlives_the_name_of_its_loader(train: ShardSet, name: str) -> None:
    dataset = opened(name, train).epoch(0)
    gc.collect()
    assert len(list(dataset)) == TRAIN_RECORDS // 8
    count = 0
    for _ in opened(name, train).epoch(1):
        gc.collect()
        count += 1
    assert count == TRAIN_RECORDS // 8


@pytest.mark.parametrize("name", ALL)
def test_a_script_that_leaves_an_iterator_open_ends(tiny_dataset: Path, name: str) -> None:
    assert run_program("leave_iterator_open", tiny_dataset, name, timeout=120).returncode == 0


@needs_dali
def test_the_cpu_operator_leaves_the_processs_arithmetic_alone(train: ShardSet) -> None:
    if not native.available():
        pytest.skip("the CPU operator does not compile here")
    smallest = np.array([1e-310])
    assert (smallest * 1.0)[0] == 1e-310


@needs_dali
def test_a_plan_that_is_written_slowly_is_ready_when_it_is_needed(
    train: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dali_loader.BackgroundPace, "_REST", 10**9)  # days, unless it is woken up
    with opened("dali", train) as loader:
        assert all(len(read(loader, epoch)[1]) == loader.steps_per_epoch * 8 for epoch in range(3))


@needs_dali
def test_dali_removes_its_plans(train: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def make(num_bytes: int) -> PlanFolder:
        folder = plan_folder.make_folder(num_bytes)
        folders.append(Path(folder.name))
        return folder

    for module in (dali_loader, index_files):
        monkeypatch.setattr(module, "make_folder", make)
    monkeypatch.setattr("pipelines.stream._FIRST_STEPS", 5)
    with opened("dali", train) as loader:
        for epoch in range(4):
            assert sum(1 for _ in loader.batches(epoch)) == loader.steps_per_epoch
        read(loader, 7)
        assert len(folders) > 6
        assert sum(folder.exists() for folder in folders) <= 5  # 3 plans; their indexes, or those of the next plan
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("spec", ["full", "evaluation"])
def test_epochs_are_those_of_the_single_epochs(
    train: ShardSet, name: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One dataset over three epochs, and batches of one pipeline after another, seams in the middle of epochs."""
    with opened(name, train, augment=SPECS[spec]) as loader:
        single = [read(loader, epoch) for epoch in (1, 2, 3)]
        monkeypatch.setattr("pipelines.stream._FIRST_STEPS", 5)
        dataset = loader.epochs(1, 3)
        assert int(dataset.cardinality()) == 3 * loader.steps_per_epoch
        for _ in range(2):  # each iterator begins again
            together = [np.concatenate(parts) for parts in zip(*dataset.as_numpy_iterator(), strict=True)]
            for part, parts in zip(together, zip(*single, strict=True), strict=True):
                np.testing.assert_array_equal(part, np.concatenate(parts))
        for epoch, expected in zip((1, 2, 3), single, strict=True):
            found = [np.concatenate([p.numpy() for p in parts]) for parts in zip(*loader.batches(epoch), strict=True)]
            for part, wanted in zip(found, expected, strict=True):
                np.testing.assert_array_equal(part, wanted)


@pytest.mark.parametrize("name", READING)
def test_one_pipeline_serves_many_epochs(train: ShardSet, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    pipeline_of = Loader._pipeline if name == "tfdata" else dali_loader.DaliLoader._pipeline

    def pipeline(loader: Loader, segment: Segment) -> Any:
        made.append(segment)
        return pipeline_of(loader, segment)

    with opened(name, train) as loader:
        monkeypatch.setattr(type(loader), "_pipeline", pipeline)
        for epoch in range(4):
            assert sum(1 for _ in loader.batches(epoch)) == loader.steps_per_epoch
        assert len(made) <= 2  # the second one is prepared
        for epoch in (4, 6):  # an epoch is left out
            assert sum(1 for _ in loader.batches(epoch)) == loader.steps_per_epoch
        assert made[-1].first <= 7 * loader.steps_per_epoch + made[0].steps
    with opened(name, train, augment=AugmentSpec.evaluation()) as loader:
        made.clear()
        for _ in range(4):  # as validations do, always the first epoch
            assert sum(1 for _ in loader.batches(0)) == loader.steps_per_epoch
        assert len(made) <= 2


@pytest.mark.parametrize("name", READING)
def test_two_readers_of_one_loader_do_not_disturb_each_other(train: ShardSet, name: str) -> None:
    with opened(name, train) as loader:
        expected = [read(loader, epoch)[1].reshape(-1, 8) for epoch in (0, 1)]
        pairs = zip(loader.batches(0), loader.batches(1), strict=True)
        for step, ((_, first), (_, second)) in enumerate(pairs):
            np.testing.assert_array_equal(first, expected[0][step])
            np.testing.assert_array_equal(second, expected[1][step])


@pytest.mark.parametrize("name", READING)
def test_predictions_leave_the_padding_out(validation: ShardSet, name: str) -> None:
    class Means:
        def predict_on_batch(self, images: tf.Tensor) -> np.ndarray:
            return images.numpy().mean(axis=(1, 2))

    with opened(name, validation, augment=AugmentSpec.evaluation()) as loader:
        predictions, labels = loader.predictions(Means())
        images, all_labels, weights = read(loader)
        np.testing.assert_array_equal(labels, all_labels[weights == 1])
        np.testing.assert_array_equal(predictions, images[weights == 1].mean(axis=(1, 2)))
        assert len(labels) == VALIDATION_RECORDS


@needs_dali
def test_a_missing_shard_raises_and_does_not_abort_the_process(tiny_dataset: Path, tmp_path: Path) -> None:
    dataset = shutil.copytree(tiny_dataset, tmp_path / "shards")
    with opened("dali", ShardSet.open(dataset, "train")) as loader:
        (dataset / "train-00001-of-00003").unlink()
        with pytest.raises(tf.errors.OpError):
            read(loader)


@pytest.mark.parametrize(
    "wrong", [{"name": "dalli"}, {"device": "tpu"}, {"workers": -1}, {"prefetch": 0}, {"dtype": "bfloat16"}]
)
def test_wrong_values_are_refused(train: ShardSet, wrong: dict) -> None:
    with pytest.raises(UserError):
        opened(**({"name": "tfdata", "shards": train} | wrong))


def test_importing_pipelines_imports_neither_tensorflow_nor_dali() -> None:
    done = run_program("without_tensorflow", "pipelines")
    assert done.returncode == 0, done.stderr
