"""Evaluates a trained model on shards, or on image files in class folders."""

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kimagenet.inference import class_folders
from kimagenet.inference.class_match import Classes, numbers_in_model
from kimagenet.inference.outputs import make_output_step
from kimagenet.inference.tally import Tally
from kimagenet.inference.trained import Trained, class_names
from kimagenet.training.feed import Feed, open_feed
from kimagenet.training.recovery import SkippedRecords
from kimagenet.training.strategy import choose_strategy
from pipelines.augment import AugmentSpec
from pipelines.errors import UserError
from pipelines.images import ImageFile, ImageReader
from pipelines.loader import BatchSpec
from pipelines.shards.dataset import DatasetInfo
from pipelines.shards.shard_set import ShardSet
from pipelines.system.processes import cpu_count

_log = logging.getLogger(__name__)


def over_shards(
    trained: Trained,
    shards: ShardSet,
    augment: AugmentSpec,
    batch_size: int,
    *,
    loader: str = "auto",
    workers: int | None = None,
    device: str = "auto",
    corrupt: SkippedRecords | None = None,
    flip: bool = False,
) -> Tally:
    """Evaluates a model on every record of a split, each counted once, on all GPUs.

    Args:
        trained: the model.
        shards: the split. Its classes may have another order than the model's.
        augment: how images are cut and scaled.
        batch_size: images a step, over all GPUs.
        loader: see `open_loader`.
        workers: see `open_loader`.
        device: see `open_loader`.
        corrupt: what to do about records that cannot be decoded; it lists those that were skipped. None: end.
        flip: see `make_output_step`.

    Raises:
        UserError: model and data set have different classes.
        RunFailed: a record cannot be decoded, and `corrupt` does not skip it.
    """
    strategy = choose_strategy()
    with strategy.scope():
        model = trained.load()
    folder = shards.paths[0].parent
    if (known := model.output_shape[-1]) != shards.num_classes:
        what = f"predicts {known} classes, the data set in {folder} has {shards.num_classes}"
        raise UserError(what, path=trained.model)
    data = Classes.of(DatasetInfo.load(folder))
    numbers = numbers_in_model(trained.known, data, trained.model, folder)
    batch = BatchSpec(batch_size, model.input_shape[1])
    classes = tuple(shards.classes[label] for label in np.argsort(numbers))  # in the model's order
    reading: dict[str, Any] = {"workers": workers, "device": device, "corrupt": corrupt}
    with open_feed(strategy, loader, shards, batch, augment, **reading) as feed:
        return over_feed(model, feed, classes, numbers, flip=flip)


def over_feed(
    model: keras.Model, feed: Feed, classes: tuple[str, ...], numbers: np.ndarray | None = None, *, flip: bool = False
) -> Tally:
    """Evaluates a model that is in memory on a whole split.

    Args:
        model: built in the feed's strategy.
        feed: evaluation batches.
        classes: the names of the model's classes.
        numbers: see `make_output_step`.
        flip: see `make_output_step`.

    Raises:
        RunFailed: see `Feed.epoch`.
    """
    step, tally = make_output_step(model, feed.strategy, numbers=numbers, flip=flip), Tally(classes)
    for images_labels_weights in feed.epoch(0):
        tally.add(step(*images_labels_weights))
    return tally


def over_folder(
    trained: Trained,
    root: Path,
    augment: AugmentSpec,
    batch_size: int,
    workers: int | None = None,
    *,
    flip: bool = False,
) -> tuple[Tally, list[tuple[ImageFile, str]]]:
    """Evaluates a model on every file of class folders, each counted once, on one device.

    Folders have the names of the model's classes, or their wnids. If these are not known and there are as many folders
    as classes, the sorted folders are the classes, as in Keras.

    Args:
        trained: the model.
        root: the folder of the class folders.
        augment: how images are cut and scaled.
        batch_size: images a step.
        workers: decoding threads; None: one for each core.
        flip: see `make_output_step`.

    Returns:
        The counts, and the files that could not be read, with the reason.

    Raises:
        UserError: the folders do not fit the model, or no file can be read.
    """
    choose_strategy()  # it limits the memory that TensorFlow takes on GPUs
    model = trained.load()
    known = model.output_shape[-1]
    classes = class_names(trained, known)
    if not trained.classes and len(folders := class_folders.names(root)) == known:
        classes = folders
        _log.warning(
            "%s: the names of its classes are not known; using the %d folders in alphabetical order",
            trained.model,
            known,
        )
    files = class_folders.list_images(root, classes, trained.wnids)
    step = make_output_step(model, tf.distribute.get_strategy(), flip=flip)
    reader = ImageReader(BatchSpec(batch_size, model.input_shape[1]), augment, trained.short_side)
    tally = Tally(classes)
    rejected: list[tuple[ImageFile, str]] = []
    for batch in reader.batches(files, workers or cpu_count()):
        rejected += batch.rejected
        if batch.files:
            labels = np.array([file.label for file in batch.files], np.int32)
            tally.add(step(batch.images, labels, np.ones(len(labels), np.float32)))
    if not tally.records:
        file, reason = rejected[0]
        raise UserError(f"none of its files can be read ({file.path.name}: {reason})", path=root)
    return tally, rejected
