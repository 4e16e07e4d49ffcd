"""The plan carried out by tf.data alone: where DALI is absent, and as a second opinion where it is not.

Reading order: range of steps → one batch of JPEGs and matrices per step → decode and warp each → batch → prefetch.
"""

import numpy as np
import tensorflow as tf

from pipelines.loader import BatchSpec, Loader
from pipelines.plan import EpochPlan
from pipelines.tf_image import Work, render


def unavailable(device: str) -> str | None:
    """Always there: TensorFlow is what the whole project stands on."""
    return None


class TfdataLoader(Loader):
    """CPU only. Needs nothing but TensorFlow."""

    name = "tfdata"

    def epoch(self, epoch: int, start_step: int = 0) -> tf.data.Dataset:
        plan = self.plan(epoch, start_step)
        reader = _StepReader(plan, self.batch)
        signature = (tf.string, tf.int32, tf.int32, tf.float32, tf.float32, tf.bool, tf.float32)

        def read(step: tf.Tensor) -> list[tf.Tensor]:
            parts = tf.numpy_function(reader, [step], signature, stateful=False)
            count = self.batch.batch_size
            shapes = ((count,), (count,), (count, 4), (count, 2, 3), (count, 3, 4), (count,), (count,))
            return [tf.ensure_shape(part, shape) for part, shape in zip(parts, shapes, strict=True)]

        def execute(encoded, label, *parts):
            *work, weight = parts
            image = render(encoded, Work(*work), self.batch, self.augment)
            return (image, label, weight) if self.augment.is_evaluation else (image, label)

        steps = plan.steps_per_epoch - start_step
        dataset = tf.data.Dataset.range(steps)
        dataset = dataset.map(read).prefetch(1)
        dataset = dataset.unbatch()
        dataset = dataset.map(execute, num_parallel_calls=self.options.workers, deterministic=True)
        dataset = dataset.batch(self.batch.batch_size, drop_remainder=True)
        dataset = dataset.prefetch(self.options.prefetch)
        options = tf.data.Options()
        # Nothing is left to it, and an iterator that ends would wait for its thread.
        options.autotune.enabled = False
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
        images = [shards.read(int(record)) for record in plan.records[start:stop]]
        return (
            np.array([image.encoded for image in images], object),
            np.array([image.label for image in images], np.int32) - shards.label_base,
            *Work.of(plan.draw(start, stop), self._batch, plan.augment),
            plan.weights[start:stop],
        )


LOADER = TfdataLoader
