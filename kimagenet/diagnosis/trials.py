"""Trials on a few generated images: each loader, whether loaders agree, and training steps on the device."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from kimagenet import demo
from kimagenet.diagnosis.findings import Finding
from pipelines import loaders
from pipelines.augment import AugmentSpec
from pipelines.building.build import build
from pipelines.building.options import BuildOptions
from pipelines.building.sources import open_source
from pipelines.errors import first_line
from pipelines.loader import BatchSpec, Loader
from pipelines.shards.shard_set import ShardSet

BATCH = BatchSpec(16, 96)
IMAGES_PER_CLASS = 4
REPEATS = 40  # so that an epoch of the few images is long enough
# Loaders decode and round differently. A wrong image, crop or colour differs by dozens of levels.
LARGEST_MEAN_DIFFERENCE = 1.0  # grey levels
TRAINING_STEPS = 12


def readers(folder: Path, seconds: float) -> Iterator[Finding]:
    """Tries each loader that reads data: images per second, and how much its pixels differ from the first loader's.

    Args:
        folder: an empty folder for the data.
        seconds: length of each trial.
    """
    shards = draw_shards(folder)
    expected: np.ndarray | None = None
    device = loaders.resolve_device("auto")
    for name in sorted(set(loaders.names()) - {"synthetic"}, reverse=True):  # tfdata first: it is always there
        if loaders.choose(name, device, strict=False).loader != name:
            continue  # another check reports it
        try:
            with loaders.open_loader(name, shards, BATCH, AugmentSpec.train(), device=device) as loader:
                rate, images = rate_of(loader, seconds)
        except Exception as error:  # libraries raise what they like
            yield Finding(f"loader {name}", "wrong", f"cannot read: {first_line(error)}")
            continue
        yield judge(name, rate, images, expected)
        expected = images if expected is None else expected


def judge(name: str, rate: float, images: np.ndarray, expected: np.ndarray | None) -> Finding:
    """Judges a loader by its first batch.

    Args:
        name: the loader.
        rate: images per second.
        images: its first batch, float32 [B, S, S, 3] in [-1, 1].
        expected: the first batch of tfdata, which should be equal; None for tfdata itself.
    """
    text = f"{rate:,.0f} images/s at {BATCH.image_size} px with full augmentation"
    figures = {"images_per_second": rate}
    if expected is None:
        return Finding(f"loader {name}", "fine", text, figures=figures)
    difference = np.abs(images - expected) * 127.5
    figures |= {"mean_difference": float(difference.mean()), "largest_difference": float(difference.max())}
    levels = f"{difference.mean():.3f} grey levels on average, {difference.max():.3f} at most"
    text += f"; differs from tfdata by {levels}"
    if difference.mean() <= LARGEST_MEAN_DIFFERENCE:
        return Finding(f"loader {name}", "fine", text, figures=figures)
    return Finding(f"loader {name}", "wrong", text, "train with --loader tfdata, and report this output", figures)


def rate_of(loader: Loader, seconds: float) -> tuple[float, np.ndarray]:
    """Images per second after the first batch, and the images of the first batch."""
    first: np.ndarray | None = None
    count, began, epoch = 0, 0.0, 0
    while first is None or perf_counter() - began < seconds:
        for images, _ in loader.batches(epoch):
            if first is None:
                first, began = images.numpy(), perf_counter()
                continue
            count += len(images)
            if perf_counter() - began >= seconds and count:
                break
        epoch += 1
    return count / (perf_counter() - began), first


def draw_shards(folder: Path) -> ShardSet:
    """Writes a few images of the demo data set as shards. Each image is listed many times."""
    demo.write_images(folder / "images", IMAGES_PER_CLASS, 1, workers=1)
    build(open_source(folder / "images"), folder / "shards", BuildOptions(1, 1))
    shards = ShardSet.open(folder / "shards", "train")
    return dataclasses.replace(
        shards,
        shard=np.tile(shards.shard, REPEATS),
        offsets=np.tile(shards.offsets, REPEATS),
        lengths=np.tile(shards.lengths, REPEATS),
        sizes=np.tile(shards.sizes, (REPEATS, 1)),
        usable=np.arange(REPEATS * shards.num_records),
    )


def training() -> Iterator[Finding]:
    """Trains on all devices that a run would use. The loss of one batch must fall."""
    import keras
    import tensorflow as tf

    from kimagenet import models
    from kimagenet.training.steps import make_training_step
    from kimagenet.training.strategy import choose_strategy

    strategy = choose_strategy()
    replicas = strategy.num_replicas_in_sync
    count, size, classes = 32, 64, 10
    rng = np.random.default_rng(0)
    batch: Any = (rng.uniform(-1, 1, (count, size, size, 3)).astype(np.float32), rng.integers(0, classes, count))
    batch = [tf.constant(batch[0]), tf.constant(batch[1], tf.int32)]
    if replicas > 1:
        batch = [strategy.experimental_distribute_values_from_function(lambda _, part=part: part) for part in batch]
    with strategy.scope():
        model = models.build("demo", classes, size)
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
        optimizer.build(model.trainable_variables)
    step = make_training_step(model, optimizer, strategy, count * replicas)
    losses = [float(step(*batch)[0])]
    began = perf_counter()
    losses += [float(step(*batch)[0]) for _ in range(TRAINING_STEPS)]
    rate = TRAINING_STEPS * count * replicas / (perf_counter() - began)
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    yield judge_training(f"{replicas} {device}s" if replicas > 1 else f"the {device}", rate, losses)


def judge_training(device: str, rate: float, losses: list[float]) -> Finding:
    """Judges a device by the loss of one batch, step after step."""
    text = f"{len(losses)} steps on {device}: {rate:,.0f} images/s, loss {losses[0]:.2f} to {losses[-1]:.2f}"
    figures = {"images_per_second": rate}
    if losses[-1] < losses[0]:  # no NaN is less
        return Finding("training", "fine", text, figures=figures)
    remedy = "the device gives wrong results: check or reinstall its driver"
    return Finding("training", "wrong", text, remedy, figures)
