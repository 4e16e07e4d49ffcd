"""The plan carried out by tf.data alone: where DALI is absent, and as a second opinion where it is not.

Reading order: range of steps → one batch of JPEGs and matrices per step → decode and warp each → batch → prefetch.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import tensorflow as tf

from pipelines.loader import BatchSpec, Loader
from pipelines.loaders._exit_gate import exit_gate
from pipelines.loaders._owned import OwnedDataset
from pipelines.stream import Segment
from pipelines.tf_image import Work, render


def unavailable(device: str) -> str | None:
    """Always there: TensorFlow is what the whole project stands on."""
    return None


class TfdataLoader(Loader):
    """CPU only. Needs nothing but TensorFlow."""

    name = "tfdata"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._readers: WeakValueDictionary[int, _StepReader] = WeakValueDictionary()
        self._numbers = count()

    def _dataset(self, segment: Segment) -> tf.data.Dataset:
        reader = _StepReader(segment, self.batch)
        number = next(self._numbers)
        self._readers[number] = reader
        # NumPy's, since TensorFlow never forgets a Python number that it was given.
        return OwnedDataset(self._graph(np.int64(number), np.int64(segment.steps)), reader)

    @cached_property
    def _graph(self) -> Callable[[np.int64, np.int64], tf.data.Dataset]:
        """(a reader's number, its steps) → dataset. Traced once: each dataset made without it takes memory for good.

        A concrete function, or TensorFlow would warn of several loaders that functions are traced too often.
        """
        gate = exit_gate()
        # Not self, which holds the function: TensorFlow never lets go of what a graph may call.
        batch, augment, loading, readers = self.batch, self.augment, self.options, self._readers
        size = batch.batch_size
        shapes = ((size,), (size,), (size, 4), (size, 2, 3), (size, 3, 4), (size,), (size,))
        # Image, label, the fields of `Work`, weight.
        dtypes = (tf.string, tf.int32, tf.int32, tf.float32, tf.float32, tf.bool, tf.float32)

        def call_reader(number: np.int64, step: np.int64) -> tuple[np.ndarray, ...]:
            with gate:
                return readers[int(number)](step)

        def execute(encoded: tf.Tensor, label: tf.Tensor, *parts: tf.Tensor) -> tuple[tf.Tensor, ...]:
            *work, weight = parts
            image = render(encoded, Work(*work), batch, augment)
            return (image, label, weight) if augment.is_evaluation else (image, label)

        def make(number: tf.Tensor, steps: tf.Tensor) -> tf.data.Dataset:
            def read(step: tf.Tensor) -> list[tf.Tensor]:
                parts = tf.numpy_function(call_reader, [number, step], dtypes, stateful=False)
                return [tf.ensure_shape(part, shape) for part, shape in zip(parts, shapes, strict=True)]

            dataset = tf.data.Dataset.range(steps).take_while(lambda _: gate.is_open())
            dataset = dataset.map(read).prefetch(1)  # or the decoding threads would wait for each step's bytes
            dataset = dataset.unbatch()
            # Twice as many as threads: what is done waits, not the thread, while a batch is put together.
            dataset = dataset.map(execute, num_parallel_calls=2 * loading.workers, deterministic=True)
            dataset = dataset.batch(size, drop_remainder=True)
            dataset = dataset.prefetch(loading.prefetch)
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))  # the gate has made it unknown
            options = tf.data.Options()
            # Nothing is left to it, and an iterator that ends would wait for its thread.
            options.autotune.enabled = False
            # The plan has dealt the records to the ranks already.
            options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
            options.threading.private_threadpool_size = loading.workers
            # One thread an operation: the images of a batch are the parallel part.
            options.threading.max_intra_op_parallelism = 1
            return dataset.with_options(options)

        return tf.function(make, autograph=False).get_concrete_function(*[tf.TensorSpec([], tf.int64)] * 2)


class _StepReader:
    """Reads the records of a step of a segment, and its matrices as the graph wants them."""

    def __init__(self, segment: Segment, batch: BatchSpec) -> None:
        self._segment = segment
        self._batch = batch
        self._plan = segment.plan

    def __call__(self, step: np.int64) -> tuple[np.ndarray, ...]:
        ((plan, start, stop),) = replace(
            self._segment, plan=self._plan, first=self._segment.first + int(step), steps=1
        ).parts()
        self._plan = plan  # so that the next step of this epoch does not shuffle again
        shards = plan.shards
        images = [shards.read(int(record)) for record in plan.records_between(start, stop)]
        return (
            np.array([image.encoded for image in images], object),
            np.array([image.label for image in images], np.int32) - shards.label_base,
            *Work.of(plan.draw(start, stop), self._batch, plan.augment),
            plan.weights_between(start, stop),
        )


LOADER = TfdataLoader
