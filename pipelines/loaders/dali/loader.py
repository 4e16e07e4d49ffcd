"""The DALI loader: a pipeline for each segment of the stream; the plan of the next one is written in the background."""

import contextlib
import ctypes
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, cached_property
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import numpy as np
import tensorflow as tf

from pipelines.errors import UserError
from pipelines.loader import Loader
from pipelines.loaders._exit_gate import exit_gate
from pipelines.loaders._owned import OwnedDataset
from pipelines.loaders.dali import native
from pipelines.loaders.dali.graph import build_graph
from pipelines.loaders.dali.plan_files import PlanFiles, make_folder, write_plan
from pipelines.plan import LARGEST_RECORD_SHUFFLE
from pipelines.stream import Pipeline, Segment, Stream

_MOST_RUNS = 1 << 16  # index files of a segment, 4 kB each: where records are shuffled one by one, positions
_MOST_POSITIONS = 1 << 20  # of a segment that is shuffled in blocks
_MOST_GPU_POSITIONS = 1 << 22  # of a dataset over several epochs: its whole plan, 160 bytes each, is written first


@cache
def _hold_decoders() -> None:
    """Keeps nvImageCodec's modules in the process.

    It would load them whenever a pipeline begins while no other lives, and each time their static data stays behind.
    """
    from nvidia import dali

    for module in Path(dali.__file__).parents[1].glob("nvimgcodec/extensions/*.so*"):
        with contextlib.suppress(OSError):  # then nvImageCodec cannot load it either
            ctypes.CDLL(str(module))


@cache
def _finish(elements: tuple[tf.TensorSpec, ...]) -> Callable[[tf.data.Dataset, np.int64], tf.data.Dataset]:
    """(DALI's dataset, steps) → dataset: a batch is copied out of DALI while the last one is trained with, to the end.

    A `tf.function`, since TensorFlow keeps some memory for each dataset that is made without one; a concrete one, or it
    would warn of several data sets that functions are traced too often.
    """

    def finish(dataset: tf.data.Dataset, steps: tf.Tensor) -> tf.data.Dataset:
        return dataset.prefetch(1).take(steps).apply(tf.data.experimental.assert_cardinality(steps))

    function = tf.function(finish, autograph=False)
    return function.get_concrete_function(tf.data.DatasetSpec(elements), tf.TensorSpec([], tf.int64))


class _Leisure:
    """Keeps background work from being felt: it takes a twentieth of its thread's time, until somebody waits for it.

    A low priority would not do: the thread would be put off while it holds the interpreter's lock.
    """

    _REST = 19  # times as long as the work before it

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._rested = 0.0

    def rest(self) -> None:
        """A piece of work is done; the work's thread alone calls this."""
        self._wanted.wait(self._REST * max(0.0, time.thread_time() - self._rested))
        self._rested = time.thread_time()

    @contextlib.contextmanager
    def hurried(self) -> Iterator[None]:
        """No rests while the block waits for the work; one thread at a time."""
        self._wanted.set()
        try:
            yield
        finally:
            self._wanted.clear()


class _DaliPipeline(Pipeline):
    """A segment whose plan is written in the background, slowly until the pipeline is opened."""

    def __init__(self, segment: Segment, loader: "DaliLoader") -> None:
        super().__init__(segment)
        self._loader = loader
        self._folder: tempfile.TemporaryDirectory | None = None
        self._written = loader.writer.submit(self._write)
        loader.pipelines.add(self)

    def open(self) -> Iterator[Any]:
        dataset = self.dataset()
        # tf.data has hardly an operation on the GPU, so nothing may follow there.
        if self._loader.options.device != "gpu":
            dataset = _finish(dataset.element_spec)(dataset, np.int64(self.segment.steps))
        return iter(dataset)

    def dataset(self) -> tf.data.Dataset:
        """DALI's own dataset, which has no end; raises `UserError` if the plan cannot be written."""
        try:
            with self._loader.pace.hurried():
                files = self._written.result()
        except OSError as error:
            raise UserError(f"the plan of an epoch cannot be written: {error}") from error
        return self._loader.dali_dataset(files)

    def close(self) -> None:
        if not self._written.cancel():
            with self._loader.pace.hurried():
                _ = self._written.exception()  # waits
        if self._folder is not None:
            self._folder.cleanup()

    def _write(self) -> PlanFiles:
        self._folder = make_folder(self.segment)
        return write_plan(self.segment, self._loader.batch, Path(self._folder.name), self._loader.pace.rest)


class _Pulled:
    """Gives the batches of a segment by their number, through a stream of its own."""

    def __init__(self, segment: Segment, open_stream: Callable[[Segment], Stream]) -> None:
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


class DaliLoader(Loader):
    """Decodes and augments in DALI. While one pipeline is read, the plan of the next one is written."""

    name = "dali"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        _hold_decoders()
        self.writer = ThreadPoolExecutor(1, "kimagenet-plan")
        self.pace = _Leisure()
        self.pipelines: WeakSet[_DaliPipeline] = WeakSet()
        self._pulled: WeakValueDictionary[int, _Pulled] = WeakValueDictionary()
        self._numbers = count()
        is_blocked = len(self.shards.usable) > LARGEST_RECORD_SHUFFLE
        self._most_steps = max(1, (_MOST_POSITIONS if is_blocked else _MOST_RUNS) // self.batch.batch_size)

    @property
    def device(self) -> str:
        return self.options.device

    def close(self) -> None:
        super().close()
        for pipeline in list(self.pipelines):
            pipeline.close()
        self.writer.shutdown(wait=True, cancel_futures=True)

    def _pipeline(self, segment: Segment) -> _DaliPipeline:
        return _DaliPipeline(segment, self)

    def make_dataset(self, segment: Segment) -> tf.data.Dataset:
        if self.options.device == "gpu" and segment.steps:  # no Python between DALI and the training step
            if segment.positions > _MOST_GPU_POSITIONS and segment.steps > self.steps_per_epoch:
                raise UserError(
                    f"loader dali: {segment.positions:,} records are too many for one dataset on a GPU",
                    remedy="open fewer epochs at once, or read `batches`",
                )
            pipeline = self._pipeline(segment)
            return OwnedDataset(pipeline.dataset(), pipeline)
        pulled, number = _Pulled(segment, self._stream), next(self._numbers)
        self._pulled[number] = pulled
        return OwnedDataset(self._graph(np.int64(number), np.int64(segment.steps)), pulled)

    @cached_property
    def _graph(self) -> Callable[[np.int64, np.int64], tf.data.Dataset]:
        """(a number of `_pulled`, its steps) → dataset, on the CPU. Traced once, as `_finish` is."""
        gate, pulled = exit_gate(), self._pulled  # not self: TensorFlow never lets go of what a graph may call
        size, count = self.batch.image_size, self.batch.batch_size
        outputs = 3 if self.augment.is_evaluation else 2
        dtypes = (tf.as_dtype(self.batch.dtype), tf.int32, tf.float32)[:outputs]
        shapes = ((count, size, size, 3), (count,), (count,))[:outputs]

        def pull(number: tf.Tensor, step: tf.Tensor) -> list[tf.Tensor]:
            with gate:
                return pulled[int(number)](int(step))

        def make(number: tf.Tensor, steps: tf.Tensor) -> tf.data.Dataset:
            def read(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
                parts = tf.py_function(pull, [number, step], dtypes)
                return tuple(tf.ensure_shape(part, shape) for part, shape in zip(parts, shapes, strict=True))

            dataset = tf.data.Dataset.range(steps).take_while(lambda _: gate.is_open()).map(read)
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
            options = tf.data.Options()
            options.autotune.enabled = False
            options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
            return dataset.with_options(options)

        return tf.function(make, autograph=False).get_concrete_function(*[tf.TensorSpec([], tf.int64)] * 2)

    def dali_dataset(self, files: PlanFiles) -> tf.data.Dataset:
        """The dataset of DALI's pipeline for a written plan; without end."""
        from nvidia.dali.plugin import tf as dali_tf

        batch, options = self.batch, self.options
        on_gpu = options.device == "gpu"
        count, size = batch.batch_size, batch.image_size
        graph = build_graph(
            files,
            batch,
            self.augment,
            self.shards.label_base,
            device=options.device,
            workers=options.workers,
            native=not on_gpu and native.available(),
        )
        outputs = 3 if self.augment.is_evaluation else 2
        with tf.device(f"/gpu:{options.gpu}" if on_gpu else "/cpu:0"):
            # What DALIDataset is not told again it takes from its own defaults, not from the pipeline.
            return dali_tf.DALIDataset(
                pipeline=graph,
                batch_size=count,
                num_threads=options.workers,
                device_id=options.gpu if on_gpu else None,
                prefetch_queue_depth=options.prefetch,
                output_shapes=((count, size, size, 3), (count,), (count,))[:outputs],
                output_dtypes=(tf.as_dtype(batch.dtype), tf.int32, tf.float32)[:outputs],
            )
