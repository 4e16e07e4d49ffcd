"""Executes the plan with tf.data alone: without DALI, and to check DALI's batches.

Reading order: range of steps → one batch of JPEGs and matrices per step → decode and warp each → batch → prefetch.
"""

import atexit
import time
from collections.abc import Callable
from functools import cache, cached_property
from itertools import count
from threading import Lock
from weakref import WeakValueDictionary

import numpy as np
import tensorflow as tf

from pipelines.loader import BatchSpec, Loader, Unavailable
from pipelines.plan import EpochPlan
from pipelines.tf_image import Work, render

_EXIT_SECONDS = 10  # how long the interpreter's end waits for a read, in case a disk does not answer


def unavailable(device: str) -> Unavailable | None:
    """None: TensorFlow is always installed."""
    return None


class TfdataLoader(Loader):
    """CPU only. Needs nothing but TensorFlow."""

    name = "tfdata"

    def epoch(self, epoch: int, start_step: int = 0) -> tf.data.Dataset:
        plan = self.plan(epoch, start_step)
        reader = _StepReader(plan, self.batch)
        # NumPy numbers, because TensorFlow keeps every Python number that it gets.
        dataset = self._dataset(np.int64(reader.number), np.int64(plan.steps_per_epoch - start_step))
        dataset._kimagenet_reader = reader  # the graph has only its number
        return dataset

    @cached_property
    def _dataset(self) -> Callable[[np.int64, np.int64], tf.data.Dataset]:
        """(a reader's number, its steps) → dataset. Traced once: other datasets take memory that is never freed.

        A concrete function, because TensorFlow would warn about too many traces when several loaders are open.
        """
        exit_gate = _exit_gate()
        batch, augment, loading = self.batch, self.augment, self.options  # not self: it holds the function
        size = batch.batch_size
        shapes = ((size,), (size,), (size, 4), (size, 2, 3), (size, 3, 4), (size,), (size,))

        def execute(encoded: tf.Tensor, label: tf.Tensor, *parts: tf.Tensor) -> tuple[tf.Tensor, ...]:
            *work, weight = parts
            image = render(encoded, Work(*work), batch, augment)
            return (image, label, weight) if augment.is_evaluation else (image, label)

        def make(number: tf.Tensor, steps: tf.Tensor) -> tf.data.Dataset:
            def read(step: tf.Tensor) -> list[tf.Tensor]:
                parts = _read_step(number, step)
                return [tf.ensure_shape(part, shape) for part, shape in zip(parts, shapes, strict=True)]

            dataset = tf.data.Dataset.range(steps).take_while(lambda _: exit_gate.is_open())
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
    """Reads the records and matrices of one step of a plan. The graph refers to it by a number."""

    def __init__(self, plan: EpochPlan, batch: BatchSpec) -> None:
        self._plan = plan
        self._batch = batch
        self.number = next(_numbers)
        _readers[self.number] = self

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


_numbers = count()
_readers: "WeakValueDictionary[int, _StepReader]" = WeakValueDictionary()


def _call_reader(number: np.int64, step: np.int64) -> tuple[np.ndarray, ...]:
    with _exit_gate():
        return _readers[int(number)](step)


@tf.function(input_signature=[tf.TensorSpec([], tf.int64)] * 2, autograph=False)
def _read_step(number: tf.Tensor, step: tf.Tensor) -> list[tf.Tensor]:
    """The output of the reader with this number: image, label, the fields of `Work`, weight.

    Traced once, because TensorFlow never frees a Python function that a graph may call, nor the plan that it holds.
    """
    dtypes = (tf.string, tf.int32, tf.int32, tf.float32, tf.float32, tf.bool, tf.float32)
    return tf.numpy_function(_call_reader, [number, step], dtypes, stateful=False)


class _ExitGate:
    """Ends all reading before the interpreter ends.

    Without it, a script that leaves an iterator open in the middle of an epoch would never end: TensorFlow's thread,
    which calls Python, waits for the interpreter, and the interpreter, which destroys the iterator, for that thread.
    """

    def __init__(self) -> None:
        self._closed = tf.queue.FIFOQueue(1, tf.bool)  # a tf.Variable would belong to the strategy in scope
        self._passing = 0
        self._lock = Lock()
        atexit.register(self._close)

    def is_open(self) -> tf.Tensor:
        """bool scalar, in TensorFlow operations."""
        return tf.equal(self._closed.size(), 0)

    def __enter__(self) -> None:
        with self._lock:
            self._passing += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._passing -= 1

    def _close(self) -> None:
        self._closed.enqueue(True)
        deadline = time.monotonic() + _EXIT_SECONDS
        time.sleep(0.02)  # a thread that found the gate open enters meanwhile
        while self._passing and time.monotonic() < deadline:
            time.sleep(0.01)


@cache
def _exit_gate() -> _ExitGate:
    return _ExitGate()


LOADER = TfdataLoader
