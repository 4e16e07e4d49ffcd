"""The operations that the training device does are Pillow's, and each image gets those that its plan has drawn."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kimagenet.training.feed import Feed, open_feed
from kimagenet.training.loop import Loop
from kimagenet.training.mixing import MixSpec
from kimagenet.training.recovery import SkippedRecords
from kimagenet.training.results import Position
from kimagenet.training.steps import make_training_step, to_input
from kimagenet.training.tones import apply_tones
from pipelines import AugmentSpec, BatchSpec, ShardSet, open_loader
from pipelines.policy import COLOURS, OPERATIONS, TONES, Operations, Policy
from pipelines.uniform import RecordUniform
from tests.helpers import faults, oracle
from tests.helpers.data import photo
from tests.helpers.documents import python_file
from tests.helpers.oracle import PILLOW
from tests.test_loaders import READING, record
from tests.test_loop import IMAGE_SIZE, make_model, weights_of

# Sums in float32, in another order than Pillow's.
FLOATING = ("brightness", "saturation", "contrast", "sharpness")
POLICY = replace(AugmentSpec.standard(), policy=Policy(count=2))


def photos(count: int, height: int = 40, width: int = 56) -> np.ndarray:
    """uint8 [count, height, width, 3]: smooth photos with noise; the last ones are grey, black, and of one edge."""
    rng = np.random.default_rng(0)
    images = np.stack([np.asarray(photo(rng, label, height, width)) for label in range(count)])
    images = np.clip(images + rng.normal(0, 6, images.shape), 0, 255).astype(np.uint8)
    images[-3:] = 77, 0, 255
    images[-1, :, : width // 3] = (1, 2, 3)
    return images


def tones_of(*steps: tuple[str, float]) -> np.ndarray:
    return np.array([[[TONES.index(name), amount] for name, amount in steps]], np.float32)


def changed(images: np.ndarray, tones: np.ndarray) -> np.ndarray:
    """uint8 images with tones, [N, K, 2] or the same for all of them, as uint8."""
    tones = np.broadcast_to(tones, (len(images), *tones.shape[1:]))
    found = (apply_tones(to_input(tf.constant(images)), tf.constant(tones)).numpy() + 1) * 127.5
    assert np.abs(found - np.round(found)).max() < 1e-3  # whole grey levels
    return np.round(found).astype(np.uint8)


@pytest.mark.parametrize("name", COLOURS)
def test_an_operation_is_pillows(name: str) -> None:
    """To the level, or one apart where sums are rounded in another order."""
    images = photos(24)
    for magnitude in (0, 1, 9, 13, 22, 30):
        for sign in (-1, 1):
            amount = oracle.amount_of(name, magnitude, sign, 224, wide=True)
            expected = [np.asarray(PILLOW[name](Image.fromarray(image), amount), int) for image in images]
            difference = np.abs(changed(images, tones_of((name, amount))) - expected)
            assert difference.max() <= (name in ("autocontrast", *FLOATING))
            assert difference.mean() < 0.01


@pytest.mark.parametrize("name", COLOURS)
def test_operations_take_images_of_any_size(name: str) -> None:
    for side in (1, 2, 3):
        images = photos(8, side, side)
        amount = oracle.amount_of(name, 20, 1, 224, wide=True)
        expected = [np.asarray(PILLOW[name](Image.fromarray(image), amount), int) for image in images]
        assert np.abs(changed(images, tones_of((name, amount))) - expected).max() <= 1


def test_each_image_gets_its_own_operations_in_their_order() -> None:
    images = photos(64)
    drawn = Policy(3, names=COLOURS).draw(RecordUniform(0, 0, np.arange(64)), 40)
    late = np.where(drawn.tones[:, :, :1] > 0, drawn.tones, 0)
    found = changed(images, late)
    for image, steps, ours in zip(images, late, found, strict=True):
        expected = Image.fromarray(image)
        for number, amount in steps:
            if number:
                expected = PILLOW[TONES[int(number)]](expected, float(amount))
        difference = np.abs(ours - np.asarray(expected, int))
        assert np.mean(difference > 1) < 0.02  # a level at the edge of a step may fall to its other side
    assert len(np.unique(late[:, :, 0])) == len(TONES)


def test_images_without_a_tone_stay_as_they_are_to_the_bit() -> None:
    images = tf.random.stateless_uniform((5, 8, 8, 3), [0, 0], -1, 1)
    tones = np.zeros((5, 2, 2), np.float32)
    tones[3, 1] = TONES.index("solarize"), 100
    found = apply_tones(images, tf.constant(tones)).numpy()
    same = [0, 1, 2, 4]
    np.testing.assert_array_equal(found[same], images.numpy()[same])
    assert not np.array_equal(found[3], images[3])
    assert apply_tones(images, tf.zeros((5, 0, 2))) is images
    traced = tf.function(apply_tones)(images, tf.constant(tones))
    np.testing.assert_array_equal(traced, found)


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("spec", [AugmentSpec.trivial(), POLICY], ids=["one", "two"])
def test_whole_policies_on_records(tiny_dataset: Path, name: str, spec: AugmentSpec) -> None:
    """Loader and device together against Pillow and NumPy. Differences of rounding can grow to a step of an operation
    that has steps, so few pixels may differ by more than a level.
    """
    shards = ShardSet.open(tiny_dataset, "train")
    with open_loader(name, shards, BatchSpec(20, 48), spec, workers=1, device="cpu", strict=True) as loader:
        steps = zip(loader.batches(0), loader.tones(0), strict=True)
        found = np.concatenate([apply_tones(images, tf.constant(tones)).numpy() for (images, _), tones in steps])
        numbers = loader.plan(0).records
    uniform = RecordUniform(0, 0, numbers)
    columns = np.stack([uniform(column) for column in range(oracle.COLUMNS)], axis=1)
    far = []
    for image, number, u in zip((found + 1) * 127.5, numbers, columns.tolist(), strict=True):
        pixels = oracle.expected(record(shards, number)[0], spec, dict(enumerate(u)), 48)
        pixels = oracle.finished(pixels, oracle.policy(spec, dict(enumerate(u)), 48))
        far.append(np.mean(np.abs(image - pixels) > 1.01))
    assert np.mean(far) < 0.01
    assert np.max(far) < 0.1


# What differs from one operation after the other, see `pipelines.policy`: the mean difference in grey levels.
LIMITS = {
    ("translate_x", "rotate"): 4.0,  # one warp: what was moved out comes back
    ("brightness", "saturation"): 1.0,
    ("saturation", "brightness"): 1.0,
    ("brightness", "rotate"): 2.5,  # of which Pillow's rotation by itself, which cuts to whole levels, has 1.4
    ("contrast", "rotate"): 5.0,  # geometry first: black counts in the mean
    ("equalize", "rotate"): 12.0,
    ("solarize", "brightness"): 0.5,
    ("posterize", "sharpness"): 0.5,
    ("rotate", "equalize"): 3.0,
}


@pytest.mark.parametrize("names", LIMITS, ids=" ".join)
def test_sequences_are_nearly_those_of_operations_one_after_the_other(names: tuple[str, str]) -> None:
    images = photos(16, 64, 64)[:13]
    apart = []
    for sign in (-1, 1):
        steps = [(name, oracle.amount_of(name, 9, sign, 64, wide=False)) for name in names]
        numbers = np.array([[OPERATIONS.index(name) for name, _ in steps]])
        drawn = Operations(numbers, np.array([[amount for _, amount in steps]]), 64)
        x, y = np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5)
        at = np.einsum("ij,jyx->iyx", drawn.warp[0], np.stack([x, y, np.ones_like(x)]))
        warped = [oracle._bilinear(image.astype(float), at[0], at[1]) @ drawn.colour[0].T for image in images]
        ours = changed(np.round(np.clip(warped, 0, 255)).astype(np.uint8), drawn.tones)
        for image, found in zip(images, ours, strict=True):
            expected = Image.fromarray(image)
            for name, amount in steps:
                expected = one_by_one(expected, name, amount)
            apart.append(np.abs(found - np.asarray(expected, float)).mean())
    assert np.mean(apart) < LIMITS[names]


def one_by_one(image: Image.Image, name: str, amount: float) -> Image.Image:
    if name == "rotate":
        return image.rotate(amount, Image.Resampling.BILINEAR)
    if name == "translate_x":
        return image.transform(image.size, Image.Transform.AFFINE, (1, 0, -amount, 0, 1, 0), Image.Resampling.BILINEAR)
    return PILLOW[name](image, amount)


def feed_of(dataset: Path, name: str = "tfdata", dtype: str = "float32", **options) -> Feed:
    shards = ShardSet.open(dataset, "train")
    batch = BatchSpec(8, IMAGE_SIZE, dtype)
    return open_feed(tf.distribute.get_strategy(), name, shards, batch, POLICY, seed=4, workers=1, **options)


@pytest.mark.parametrize("name", READING)
def test_a_feed_gives_each_batch_its_tones_also_after_records_are_skipped(
    tiny_dataset: Path, tmp_path: Path, name: str
) -> None:
    dataset = faults.copy_dataset(tiny_dataset, tmp_path / "shards")
    with feed_of(dataset, name, corrupt=SkippedRecords("skip", 100)) as feed:
        plan = feed.loaders[0].plan(0)
        bad = plan.records[[20, 60]].tolist()
        by_record = dict(zip(plan.records.tolist(), plan.tones(0, len(plan.records)), strict=True))
        whole = [tones.numpy() for *_, tones in feed.epoch(0)]
        tail = [tones.numpy() for *_, tones in feed.epoch(0, 5)]
        np.testing.assert_array_equal(np.concatenate(whole[5:]), np.concatenate(tail))
        np.testing.assert_array_equal(np.concatenate(whole), list(by_record.values()))
        faults.corrupt(feed.shards, bad, "image head")
        order = [number for number in plan.records.tolist() if number not in bad]
        found = np.concatenate([tones.numpy() for *_, tones in feed.epoch(0)])
        left = [number for number in order if number in by_record][: len(found)]
        np.testing.assert_array_equal(found[: len(left)], [by_record[number] for number in left])
        assert sorted(feed.corrupt.of("train")) == sorted(bad)


@pytest.mark.parametrize(("dtype", "xla"), [("float32", False), ("float16", False), ("uint8", False), ("uint8", True)])
def test_the_training_step_applies_them_before_it_mixes(tiny_dataset: Path, dtype: str, xla: bool) -> None:
    with feed_of(tiny_dataset, dtype=dtype) as feed:
        images, labels, tones = next(feed.epoch(0))
    model = make_model()
    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build(model.trainable_variables)
    step = make_training_step(
        model, optimizer, tf.distribute.get_strategy(), 8, mixing=MixSpec(mixup=0.2), seed=5, xla=xla
    )
    at = tf.constant(7, tf.int64)
    expected = step(apply_tones(to_input(images), tones), labels, at).numpy()
    assert step(images, labels, at, 0.0, tones).numpy() == pytest.approx(expected, rel=1e-5)
    assert step(images, labels, at).numpy()[0] != pytest.approx(expected[0], rel=1e-3)


def test_a_run_that_starts_within_an_epoch_has_the_same_tones(tiny_dataset: Path) -> None:
    weights = []
    with feed_of(tiny_dataset) as feed:
        for parts in (False, True):
            model = make_model()
            loop = Loop(model, keras.optimizers.SGD(0.1), feed)
            if parts:
                stop = keras.callbacks.LambdaCallback(
                    on_train_batch_end=lambda step, m=model, **_: setattr(m, "stop_training", step == 4)
                )
                loop.fit(1, [stop])
                loop = Loop(model, keras.optimizers.SGD(0.1), feed)
                loop.fit(1, start=Position(step=5))
            else:
                loop.fit(1)
            weights.append(weights_of(model))
    np.testing.assert_array_equal(*weights)


def test_a_dataset_says_that_it_lacks_the_tones(tiny_dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = ShardSet.open(tiny_dataset, "train")
    for spec, lines in ((AugmentSpec.trivial(), 1), (AugmentSpec.train(), 0)):
        caplog.clear()
        with open_loader("tfdata", shards, BatchSpec(8, 16), spec, workers=1) as loader:
            loader.epoch(0)
            loader.epochs(0, 2)
        assert caplog.text.count("is left to the training device") == lines


def test_the_loop_of_the_page(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tfrecords").symlink_to(tiny_dataset)
    monkeypatch.chdir(tmp_path)
    names: dict[str, tf.Tensor] = {}
    exec(python_file("docs/augmentation.md", "A loop of your own"), names)
    assert names["images"].shape == (16, 96, 96, 3)
    assert names["tones"].shape == (16, 1, 2)
