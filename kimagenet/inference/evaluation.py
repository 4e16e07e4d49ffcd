"""Runs a trained model over shards, or over images as they lie in folders, and counts what it got right."""

import logging
from pathlib import Path

import numpy as np
import tensorflow as tf

from kimagenet.inference import class_folders
from kimagenet.inference.outputs import make_output_step
from kimagenet.inference.tally import Tally
from kimagenet.inference.trained import Trained, class_names, load
from kimagenet.training.feed import open_feed
from kimagenet.training.strategy import choose_strategy
from pipelines.augment import AugmentSpec
from pipelines.errors import UserError
from pipelines.images import ImageFile, ImageReader
from pipelines.loader import BatchSpec
from pipelines.shards.shard_set import ShardSet
from pipelines.system.processes import cpu_count

_log = logging.getLogger(__name__)


def over_shards(
    model_file: Path,
    shards: ShardSet,
    augment: AugmentSpec,
    batch_size: int,
    *,
    loader: str = "auto",
    workers: int | None = None,
    device: str = "auto",
) -> Tally:
    """Every record of a split once, on all GPUs. Raises `UserError` if model and data do not fit."""
    strategy = choose_strategy()
    with strategy.scope():
        model = load(model_file)
    if (known := model.output_shape[-1]) != shards.num_classes:
        folder = shards.paths[0].parent
        raise UserError(f"{model_file}: knows {known} classes, the data set in {folder} has {shards.num_classes}")
    batch = BatchSpec(batch_size, model.input_shape[1])
    step = make_output_step(model, strategy)
    tally = Tally(shards.classes)
    with open_feed(strategy, loader, shards, batch, augment, workers=workers, device=device) as feed:
        for images_labels_weights in feed.epoch(0):
            tally.add(step(*images_labels_weights))
    return tally


def over_folder(
    trained: Trained, root: Path, augment: AugmentSpec, batch_size: int, workers: int | None = None
) -> tuple[Tally, list[tuple[ImageFile, str]]]:
    """Every file of the class folders in `root` once, on one device; and the files that could not be read, with why.

    Folders bear the names of the model's classes, or their wnids. If nobody names these and there are as many folders
    as classes, the folders stand in order, as everywhere in Keras. Raises `UserError` if the folders do not fit, or
    no file can be read.
    """
    choose_strategy()  # for what it does to the memory of GPUs
    model = load(trained.model)
    known = model.output_shape[-1]
    classes = class_names(trained, known)
    if not trained.classes and len(folders := class_folders.names(root)) == known:
        classes = folders
        _log.warning("%s: nobody names its classes; taking the %d folders in order", trained.model, known)
    files = class_folders.list_images(root, classes, trained.wnids)
    step = make_output_step(model, tf.distribute.get_strategy())
    reader = ImageReader(BatchSpec(batch_size, model.input_shape[1]), augment, trained.short_side)
    tally = Tally(classes)
    rejected: list[tuple[ImageFile, str]] = []
    for batch in reader.batches(files, workers or cpu_count()):
        rejected += batch.rejected
        if batch.files:
            labels = np.array([file.label for file in batch.files], np.int32)
            tally.add(step(batch.images, labels, np.ones(len(labels), np.float32)))
    if not tally.records:
        raise UserError(f"{root}: none of its files can be read ({rejected[0][0].path.name}: {rejected[0][1]})")
    return tally, rejected
