"""Datasets on the CPU whose batches come from a stream of pipelines, one after another."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import count
from weakref import WeakValueDictionary

import numpy as np
import tensorflow as tf

from pipelines.loader import BatchSpec
from pipelines.loaders._exit_gate import exit_gate
from pipelines.loaders._owned import OwnedDataset
from pipelines.stream import Segment, Stream

OpenStream = Callable[[Segment], Stream]


class _Pulled:
    """Gives the batches of a segment by their number."""

    def __init__(self, segment: Segment, open_stream: OpenStream) -> None:
        self._segment = segment
        self._open_stream = open_stream
        self._stream: Stream | None = None

    def __call__(self, step: int) -> list[tf.Tensor]:
        first = self._segment.first + step
        if self._stream is None or self._stream.position != first:  # an iterator begins
            if self._stream is not None:
                self._stream.close()
            self._stream = self._open_stream(replace(self._segment, first=first, steps=self._segment.steps - step))
        return list(self._stream.next())


class PulledDatasets:
    """The datasets of one loader. Their graph is traced once: other datasets take memory that is never freed.

    Args:
        batch: the shape and dtype of a batch.
        is_evaluation: whether a batch has weights.
    """

    def __init__(self, batch: BatchSpec, *, is_evaluation: bool) -> None:
        self._batch = batch
        self._is_evaluation = is_evaluation
        self._pulled: WeakValueDictionary[int, _Pulled] = WeakValueDictionary()
        self._numbers = count()

    def make(self, segment: Segment, open_stream: OpenStream) -> tf.data.Dataset:
        """The batches of a segment. Each iterator opens a stream."""
        pulled, number = _Pulled(segment, open_stream), next(self._numbers)
        self._pulled[number] = pulled
        # NumPy numbers, because TensorFlow keeps every Python number that it gets.
        return OwnedDataset(self._graph(np.int64(number), np.int64(segment.steps)), pulled)

    @cached_property
    def _graph(self) -> Callable[[np.int64, np.int64], tf.data.Dataset]:
        """(a number of `_pulled`, its steps) → dataset.

        A concrete function, because TensorFlow would warn about too many traces when several loaders are open.
        """
        gate, pulled = exit_gate(), self._pulled  # not self: TensorFlow never frees what a graph may call
        size, count = self._batch.image_size, self._batch.batch_size
        outputs = 3 if self._is_evaluation else 2
        dtypes = (tf.as_dtype(self._batch.dtype), tf.int32, tf.float32)[:outputs]
        shapes = ((count, size, size, 3), (count,), (count,))[:outputs]

        def pull(number: tf.Tensor, step: tf.Tensor) -> list[tf.Tensor]:
            with gate:
                return pulled[int(number)](int(step))

        def make(number: tf.Tensor, steps: tf.Tensor) -> tf.data.Dataset:
            def read(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
                parts = tf.py_function(pull, [number, step], dtypes)  # hands tensors over without a copy
                return tuple(tf.ensure_shape(part, shape) for part, shape in zip(parts, shapes, strict=True))

            dataset = tf.data.Dataset.range(steps).take_while(lambda _: gate.is_open()).map(read)
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))  # the gate makes it unknown
            options = tf.data.Options()
            options.autotune.enabled = False
            options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
            return dataset.with_options(options)

        return tf.function(make, autograph=False).get_concrete_function(*[tf.TensorSpec([], tf.int64)] * 2)
