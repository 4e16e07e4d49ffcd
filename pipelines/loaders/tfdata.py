"""The plan carried out by tf.data alone: where DALI is absent, and as a second opinion where it is not.

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

_EXIT_SECONDS = 10  # a read may take so long at the interpreter's end, where a disk does not answer


def unavailable(device: str) -> Unavailable | None:
    """None: TensorFlow is always installed."""
    return None


class TfdataLoader(Loader):
    """CPU only. Needs nothing but TensorFlow."""

    name = "tfdata"

    def epoch(self, epoch: int, start_step: int = 0) -> tf.data.Dataset:
        plan = self.plan(epoch, start_step)
        reader = _StepReader(plan, self.batch)
        # NumPy's, since TensorFlow never forgets a Python number that it was given.
        dataset = self._dataset(np.int64(reader.number), np.int64(plan.steps_per_epoch - start_step))
        dataset._kimagenet_reader = reader  # the graph knows its number alone
        return dataset

    @cached_property
    def _dataset(self) -> Callable[[np.int64, np.int64], tf.data.Dataset]:
        """(a reader's number, its steps) → dataset. Traced once: each dataset made without it takes memory for good.

        A concrete function, or TensorFlow would warn of several loaders that functions are traced too often.
        """
        exit_gate = _exit_gate()
        batch, augment, loading = self.batch, self.augment, self.options  # not self, which holds the function
        size = batch.batch_size
        shapes = ((size,), (size,), (size, 4), (size, 2, 3), (size, 3, 4), (size,), (size,))

        def execute(encoded, label, *parts):
            *work, weight = parts
            image = render(encoded, Work(*work), batch, augment)
            return (image, label, weight) if augment.is_evaluation else (image, label)

        def make(number: tf.Tensor, steps: tf.Tensor) -> tf.data.Dataset:
            def read(step: tf.Tensor) -> list[tf.Tensor]:
                parts = _read_step(number, step)
                return [tf.ensure_shape(part, shape) for part, shape in zip(parts, shapes, strict=True)]

            dataset = tf.data.Dataset.range(steps).take_while(lambda _: exit_gate.is_open())
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
    """Reads the records of one step of a plan, and its matrices as the graph wants them. It has a number."""

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
    """What the reader of this number gives: image, label, the fields of `Work`, weight.

    Traced once: TensorFlow never lets go of a Python function that a graph may call, nor of the plan it would hold.
    """
    dtypes = (tf.string, tf.int32, tf.int32, tf.float32, tf.float32, tf.bool, tf.float32)
    return tf.numpy_function(_call_reader, [number, step], dtypes, stateful=False)


class _ExitGate:
    """Ends all reading before the interpreter ends.

    TensorFlow's thread that calls Python when the interpreter is ending would wait for it for ever, and the end, which
    destroys an iterator that a script has left open in mid-epoch, for that thread.
    """

    def __init__(self) -> None:
        self._closed = tf.queue.FIFOQueue(1, tf.bool)  # no tf.Variable: that would belong to the strategy in scope
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
        time.sleep(0.02)  # who has found it open enters meanwhile
        while self._passing and time.monotonic() < deadline:
            time.sleep(0.01)


@cache
def _exit_gate() -> _ExitGate:
    return _ExitGate()


LOADER = TfdataLoader
