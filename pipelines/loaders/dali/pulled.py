"""Datasets on the CPU whose batches come from a stream of pipelines, one after another."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import count
from threading import Lock
from weakref import WeakValueDictionary

import numpy as np
import tensorflow as tf

from pipelines.loader import BatchSpec
from pipelines.loaders._exit_gate import exit_gate
from pipelines.loaders._owned import OwnedDataset
from pipelines.stream import Segment, Stream

OpenStream = Callable[[Segment], Stream]

_MOST_STREAMS = 4  # of one dataset that are open


class _Pulled:
    """Gives the batches of a segment to several iterators, each through its own stream.

    Nothing says when an iterator is gone. So the streams that were read longest ago are closed when there are many; one
    that is read again is opened again where it was.
    """

    def __init__(self, segment: Segment, open_stream: OpenStream) -> None:
        self._segment = segment
        self._open_stream = open_stream
        self._streams: OrderedDict[int, _Reading] = OrderedDict()
        self._lock = Lock()

    def __call__(self, iterator: int, step: int) -> list[tf.Tensor]:
        first = self._segment.first + step
        with self._lock:
            reading = self._streams.setdefault(iterator, _Reading())
            self._streams.move_to_end(iterator)
            old = list(self._streams)[:-_MOST_STREAMS]
            ended = [number for number in old if not self._streams[number].lock.locked()]
            closed = [self._streams.pop(number).stream for number in ended]
        for stream in closed:
            if stream is not None:
                stream.close()
        with reading.lock:
            if reading.stream is None or reading.stream.position != first:
                steps = self._segment.steps - step
                reading.stream = self._open_stream(replace(self._segment, first=first, steps=steps))
            return list(reading.stream.next())


class _Reading:
    """The stream of one iterator, and the lock of its reader."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.lock = Lock()


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
        size, records = self._batch.image_size, self._batch.batch_size
        outputs = 3 if self._is_evaluation else 2
        dtypes = (tf.as_dtype(self._batch.dtype), tf.int32, tf.float32)[:outputs]
        shapes = ((records, size, size, 3), (records,), (records,))[:outputs]

        iterators = count()

        def pull(number: tf.Tensor, iterator: tf.Tensor, step: tf.Tensor) -> list[tf.Tensor]:
            with gate:
                return pulled[int(number)](int(iterator), int(step))

        def next_iterator() -> np.int64:
            return np.int64(next(iterators))

        def make(number: tf.Tensor, steps: tf.Tensor) -> tf.data.Dataset:
            def read(iterator: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, ...]:
                # Hands tensors over without a copy.
                parts = tf.py_function(pull, [number, iterator, step], dtypes)
                return tuple(tf.ensure_shape(part, shape) for part, shape in zip(parts, shapes, strict=True))

            def all_steps(_: tf.Tensor) -> tf.data.Dataset:
                iterator = tf.numpy_function(next_iterator, [], tf.int64)
                open_steps = tf.data.Dataset.range(steps).take_while(lambda _: gate.is_open())
                return open_steps.map(lambda step: read(iterator, step))

            dataset = tf.data.Dataset.range(1).flat_map(all_steps)
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))  # the gate makes it unknown
            options = tf.data.Options()
            options.autotune.enabled = False
            options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
            return dataset.with_options(options)

        return tf.function(make, autograph=False).get_concrete_function(*[tf.TensorSpec([], tf.int64)] * 2)
