"""Executes the plan with tf.data alone: without DALI, and to check DALI's batches.

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

from pipelines.loader import BatchSpec, DatasetPipeline, Loader, Unavailable
from pipelines.loaders._exit_gate import exit_gate
from pipelines.loaders._owned import OwnedDataset
from pipelines.stream import Pipeline, Segment
from pipelines.tf_image import Work, render


def unavailable(device: str) -> Unavailable | None:
    """None: TensorFlow is always installed."""
    return None


class TfdataLoader(Loader):
    """CPU only. Needs nothing but TensorFlow."""

    name = "tfdata"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._readers: WeakValueDictionary[int, _StepReader] = WeakValueDictionary()
        self._numbers = count()

    def make_dataset(self, segment: Segment) -> tf.data.Dataset:
        return self._dataset(segment, self._follow(segment))

    def _pipeline(self, segment: Segment) -> Pipeline:
        return DatasetPipeline(segment, self._dataset)  # the stream itself is followed

    def _dataset(self, segment: Segment, follow: Callable[[int], object] = lambda _: None) -> tf.data.Dataset:
        reader = _StepReader(segment, self.batch, follow)
        number = next(self._numbers)
        self._readers[number] = reader
        # NumPy numbers, because TensorFlow keeps every Python number that it gets.
        return OwnedDataset(self._graph(np.int64(number), np.int64(segment.steps)), reader)

    @cached_property
    def _graph(self) -> Callable[[np.int64, np.int64], tf.data.Dataset]:
        """(a reader's number, its steps) → dataset. Traced once: other datasets take memory that is never freed.

        A concrete function, because TensorFlow would warn about too many traces when several loaders are open.
        """
        gate = exit_gate()
        # Not self: TensorFlow never frees a Python function that a graph may call, nor what the function holds.
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
            dataset = dataset.map(read).prefetch(1)  # so that decoding does not wait for each step's bytes
            dataset = dataset.unbatch()
            # Twice the threads, so that finished images wait for their batch and threads do not.
            dataset = dataset.map(execute, num_parallel_calls=2 * loading.workers, deterministic=True)
            dataset = dataset.batch(size, drop_remainder=True)
            dataset = dataset.prefetch(loading.prefetch)
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))  # take_while made it unknown
            options = tf.data.Options()
            # It has nothing to tune, and an iterator that ends would wait for its thread.
            options.autotune.enabled = False
            # The plan has already given each rank its records.
            options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
            options.threading.private_threadpool_size = loading.workers
            # One thread per operation, because the images of a batch run in parallel.
            options.threading.max_intra_op_parallelism = 1
            return dataset.with_options(options)

        return tf.function(make, autograph=False).get_concrete_function(*[tf.TensorSpec([], tf.int64)] * 2)


class _StepReader:
    """Reads the records and matrices of one step of a segment. The graph refers to it by a number."""

    def __init__(self, segment: Segment, batch: BatchSpec, follow: Callable[[int], object]) -> None:
        self._segment = segment
        self._batch = batch
        self._plan = segment.plan
        self._follow = follow

    def __call__(self, step: np.int64) -> tuple[np.ndarray, ...]:
        first = self._segment.first + int(step)
        self._follow(first)
        ((plan, start, stop),) = replace(self._segment, plan=self._plan, first=first, steps=1).parts()
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
