"""The plan carried out by tf.data alone: where DALI is absent, and as a second opinion where it is not.

Reading order: range of steps → one batch of JPEGs and matrices per step → decode and warp each → batch → prefetch.
"""

import os
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines import records
from pipelines.augment import AugmentSpec
from pipelines.loader import BatchSpec, Loader
from pipelines.plan import EpochPlan
from pipelines.shards import ShardSet


def unavailable(device: str) -> str | None:
    """Always there: TensorFlow is what the whole project stands on."""
    return None


class TfdataLoader(Loader):
    """CPU only. Needs nothing but TensorFlow."""

    name = "tfdata"

    def epoch(self, epoch: int, start_step: int = 0) -> tf.data.Dataset:
        plan = self.plan(epoch, start_step)
        reader = _StepReader(plan, self.batch)
        signature = (tf.string, tf.int32, tf.float32, tf.float32, tf.int32, tf.float32)

        def read(step: tf.Tensor) -> list[tf.Tensor]:
            parts = tf.numpy_function(reader, [step], signature, stateful=False)
            count = self.batch.batch_size
            shapes = ((count,), (count,), (count, 2, 3), (count, 3, 4), (count, 4), (count,))
            return [tf.ensure_shape(part, shape) for part, shape in zip(parts, shapes, strict=True)]

        def execute(encoded, label, affine, colour, box, weight):
            # The default IDCT is a fast approximation, more than a grey level off; this one equals Pillow's and DALI's.
            image = tf.image.decode_and_crop_jpeg(encoded, box, channels=3, dct_method="INTEGER_ACCURATE")
            image = _warp(image, affine, self.batch.image_size, self.augment)
            image = _to_output(_colour(image, colour, self.augment), self.batch.dtype)
            return (image, label, weight) if self.augment.is_evaluation else (image, label)

        steps = self.steps_per_epoch - start_step
        dataset = tf.data.Dataset.range(steps).map(read).unbatch()
        dataset = dataset.map(execute, num_parallel_calls=self.options.workers, deterministic=True)
        dataset = dataset.batch(self.batch.batch_size, drop_remainder=True).prefetch(self.options.prefetch)
        options = tf.data.Options()
        # The plan has dealt the records to the ranks already.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        # One thread an operation: the images of a batch are the parallel part.
        options.threading.max_intra_op_parallelism = 1
        return dataset.with_options(options)


class _StepReader:
    """Reads the records of one step of a plan, and its matrices as the graph wants them."""

    def __init__(self, plan: EpochPlan, batch: BatchSpec) -> None:
        self._plan = plan
        self._batch = batch

    def __call__(self, step: np.int64) -> tuple[np.ndarray, ...]:
        plan, shards = self._plan, self._plan.shards
        start, stop = int(step) * plan.batch_size, (int(step) + 1) * plan.batch_size
        examples = [_read(shards, int(record)) for record in plan.records[start:stop]]
        draws = plan.draw(start, stop)
        return (
            np.array([bytes(example[records.ENCODED]) for example in examples], object),
            np.array([example[records.LABEL] for example in examples], np.int32) - shards.label_base,
            _between_pixel_centres(draws.affine, draws.box).astype(np.float32),
            self._batch.to_output_range(draws.colour).astype(np.float32),
            draws.box,
            plan.weights[start:stop],
        )


def _read(shards: ShardSet, record: int) -> dict[str, Any]:
    """A record's features. Its shard is opened anew each time: a thousand must not hold a thousand descriptors."""
    path = shards.paths[shards.shard[record]]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        length = int(shards.lengths[record]) - records.HEADER_BYTES - records.FOOTER_BYTES
        data = os.pread(descriptor, length, int(shards.offsets[record]) + records.HEADER_BYTES)
    finally:
        os.close(descriptor)
    features = records.decode_example(memoryview(data))
    if not isinstance(features.get(records.ENCODED), memoryview) or not isinstance(features.get(records.LABEL), int):
        raise ValueError(f"{path}: the record at byte {shards.offsets[record]} has no image or no label")
    return features


def _between_pixel_centres(affine: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The plan's matrices, whose pixels begin at corners, for a box-sized image whose pixels have integer centres."""
    shifted = affine.copy()
    shifted[:, :, 2] += affine[:, :, :2].sum(axis=2) / 2 - 0.5 - box[:, [1, 0]]
    return shifted


def _warp(image: tf.Tensor, affine: tf.Tensor, size: int, augment: AugmentSpec) -> tf.Tensor:
    """float32 [size, size, 3]: the cheap warp wherever it can do what is planned."""
    if not augment.turns:
        return _warp_straight(image, affine, size)
    return tf.ensure_shape(
        tf.cond(
            tf.abs(affine[0, 1]) > 0,
            lambda: _warp_turned(image, affine, size),
            lambda: _warp_straight(image, affine, size),
        ),
        (size, size, 3),
    )


def _warp_turned(image: tf.Tensor, affine: tf.Tensor, size: int) -> tf.Tensor:
    """uint8 [H, W, 3] → float32 [size, size, 3] by any affine matrix; outside is black."""
    projective = tf.concat([tf.reshape(affine, [6]), [0.0, 0.0]], axis=0)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image, tf.float32)[None],
        transforms=projective[None],
        output_shape=[size, size],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]


def _warp_straight(image: tf.Tensor, affine: tf.Tensor, size: int) -> tf.Tensor:
    """The same for matrices that only scale, shift and mirror, at a fifth of the time."""
    framed = tf.pad(image, [[1, 1], [1, 1], [0, 0]])  # the operator is black, not half black, half a pixel outside
    last = tf.cast(tf.shape(framed)[:2] - 1, tf.float32)
    scale = tf.stack([affine[1, 1], affine[0, 0]])
    first = tf.stack([affine[1, 2], affine[0, 2]]) + 1
    corners = tf.concat([first / last, (first + scale * (size - 1)) / last], axis=0)
    return tf.image.crop_and_resize(framed[None], corners[None], [0], [size, size])[0]


def _colour(image: tf.Tensor, colour: tf.Tensor, augment: AugmentSpec) -> tf.Tensor:
    """float32 [S, S, 3] by the colour matrix, which holds the scaling to the output's range as well."""
    if not augment.jitters:
        return image * colour[0, 0] + colour[:, 3]  # scaling alone
    return tf.nn.conv2d(image[None], tf.transpose(colour[:, :3])[None, None], 1, "VALID")[0] + colour[:, 3]


def _to_output(image: tf.Tensor, dtype: str) -> tf.Tensor:
    """Clipped to the output's range."""
    if dtype == "uint8":
        return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)
    return tf.cast(tf.clip_by_value(image, -1.0, 1.0), dtype)


LOADER = TfdataLoader
