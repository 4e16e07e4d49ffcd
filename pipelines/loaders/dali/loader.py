"""The DALI loader: a pipeline for each segment of the stream; the plan of the next one is written in the background."""

import contextlib
import ctypes
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from functools import cache, cached_property
from pathlib import Path
from traceback import clear_frames
from typing import Any
from weakref import WeakSet

import numpy as np
import tensorflow as tf

from pipelines.errors import UserError, reason
from pipelines.loader import Loader
from pipelines.loaders._owned import OwnedDataset
from pipelines.loaders.dali import native
from pipelines.loaders.dali.graph import build_graph
from pipelines.loaders.dali.host_time import HostCheck
from pipelines.loaders.dali.index_files import IndexFolders
from pipelines.loaders.dali.plan_files import RECORD_BYTES, PlanFiles, write_plan
from pipelines.loaders.dali.plan_folder import PlanFolder, make_folder
from pipelines.loaders.dali.pulled import PulledDatasets
from pipelines.order.spec import LARGEST_RECORD_SHUFFLE
from pipelines.stream import Pipeline, Segment
from pipelines.system.worker import Worker

_log = logging.getLogger(__name__)

_MOST_RUNS = 1 << 16  # index files of a segment, 4 kB each: where neighbours are of different shards, positions
_MOST_POSITIONS = 1 << 20  # of a segment in which neighbours are of the same shard


@cache
def _hold_decoders() -> None:
    """Keeps nvImageCodec's modules in the process.

    Otherwise it loads them each time a pipeline begins while there is no other, and their static data is never freed.
    """
    from nvidia import dali

    for module in Path(dali.__file__).parents[1].glob("nvimgcodec/extensions/*.so*"):
        with contextlib.suppress(OSError):  # then nvImageCodec cannot load it either
            ctypes.CDLL(str(module))


@cache
def _finish(elements: tuple[tf.TensorSpec, ...]) -> Callable[[tf.data.Dataset, np.int64], tf.data.Dataset]:
    """(DALI's dataset, steps) → dataset of so many steps: a batch is copied out of DALI while the last one is used.

    A `tf.function`, since TensorFlow never frees some memory of each dataset that is made without one. A concrete one,
    since TensorFlow warns if several data sets make it trace a function often.
    """

    def finish(dataset: tf.data.Dataset, steps: tf.Tensor) -> tf.data.Dataset:
        return dataset.prefetch(1).take(steps).apply(tf.data.experimental.assert_cardinality(steps))

    function = tf.function(finish, autograph=False)
    return function.get_concrete_function(tf.data.DatasetSpec(elements), tf.TensorSpec([], tf.int64))


class BackgroundPace:
    """Limits background work to 5 % of its thread's time until a caller waits for it.

    A low priority would not help: the thread could lose the processor while it holds the interpreter's lock.
    """

    _REST = 19  # times as long as the work before it

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._waiting = 0
        self._lock = threading.Lock()
        self._is_stopped = False
        self._rested = 0.0

    def rest(self) -> None:
        """Sleeps in proportion to the work since the last call. Only the thread that works calls this.

        Raises:
            CancelledError: the work is not needed any more.
        """
        if self._is_stopped:
            raise CancelledError
        self._wanted.wait(self._REST * max(0.0, time.thread_time() - self._rested))
        self._rested = time.thread_time()

    def hurry(self) -> None:
        """Allows no rest until `relax` was called as often."""
        with self._lock:
            self._waiting += 1
            self._wanted.set()

    def relax(self) -> None:
        """Takes one `hurry` back."""
        with self._lock:
            self._waiting -= 1
            if not self._waiting and not self._is_stopped:
                self._wanted.clear()

    def stop(self) -> None:
        """Ends the work at its next rest."""
        self._is_stopped = True
        self._wanted.set()


def physical_gpu(logical: int, parts: Sequence[int]) -> int:
    """The number of the GPU that a TensorFlow device is on, as CUDA and DALI count.

    Args:
        logical: the device's number in TensorFlow, "/gpu:2" is 2.
        parts: how many TensorFlow devices there are on each GPU: several if it is divided, none if it is hidden.
    """
    for number, count in enumerate(parts):
        if logical < count:
            return number
        logical -= count
    raise ValueError(f"TensorFlow has no such GPU; it has {sum(parts)}")


def _parts_of_gpus() -> list[int]:
    visible = tf.config.get_visible_devices("GPU")
    return [
        len(tf.config.get_logical_device_configuration(gpu) or [None]) if gpu in visible else 0
        for gpu in tf.config.list_physical_devices("GPU")
    ]


def _release_gpu_memory() -> None:
    """Gives the memory that DALI's pools hold and nobody uses back to the driver. DALI never does this by itself."""
    from nvidia.dali import backend

    if hasattr(backend, "ReleaseUnusedMemory"):
        backend.ReleaseUnusedMemory()


class _DaliPipeline(Pipeline):
    """A segment whose plan is written in the background, slowly until the pipeline is opened."""

    def __init__(self, segment: Segment, loader: "DaliLoader") -> None:
        super().__init__(segment)
        self._loader = loader
        self._folder: PlanFolder | None = None
        self._indexes: PlanFolder | None = None
        self._is_hurried = False
        self._written = loader.writer.submit(self._write)
        loader.pipelines.add(self)

    def open(self) -> Iterator[Any]:
        dataset = self.dataset()
        # Most of tf.data's operations do not run on a GPU, so nothing may follow there: readers count the steps.
        if self._loader.device != "gpu":
            dataset = _finish(dataset.element_spec)(dataset, np.int64(self.segment.steps))
        return iter(dataset)

    def begin(self) -> Iterator[Any]:
        batches = super().begin()
        self._release_indexes()  # DALI has read them
        return batches

    def dataset(self) -> tf.data.Dataset:
        """DALI's own dataset, which has no end. Raises `UserError` if the plan cannot be written."""
        self.hurry()
        try:
            files = self._written.result()
        except OSError as error:
            raise UserError(
                f"the plan of an epoch cannot be written: {reason(error)}",
                path=error.filename,
                remedy="free some space, or set TMPDIR to another folder",
            ) from error
        return self._loader.dali_dataset(files)

    def hurry(self) -> None:
        if not self._is_hurried:
            self._is_hurried = True
            pace = self._loader.pace  # not self, which holds the future
            pace.hurry()
            self._written.add_done_callback(lambda _: pace.relax())

    def close(self) -> None:
        """Removes the plan, after it is written."""
        self._written.cancel()
        self.hurry()
        with contextlib.suppress(CancelledError):
            if (error := self._written.exception()) is not None:  # waits
                clear_frames(error.__traceback__)  # they hold this pipeline
        self._release_indexes()
        if self._folder is not None:
            self._folder.cleanup()

    def _release_indexes(self) -> None:
        folder, self._indexes = self._indexes, None
        if folder is not None:
            self._loader.index_folders.give_back(folder)

    def _write(self) -> PlanFiles:
        loader, segment = self._loader, self.segment
        self._indexes = indexes = loader.index_folders.take(segment)
        self._folder = folder = make_folder(segment.positions * RECORD_BYTES)
        return write_plan(
            segment,
            loader.batch,
            Path(folder.name),
            loader.pace.rest,
            indexes=Path(indexes.name),
            whole_images=loader.device == "gpu",
        )


class DaliLoader(Loader):
    """Decodes and augments in DALI. While one pipeline is read, the plan of the next one is written."""

    name = "dali"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        _hold_decoders()
        self.pace = BackgroundPace()
        self.writer = Worker("kimagenet-plan", self.pace.stop)
        self.index_folders = IndexFolders()
        self.pipelines: WeakSet[_DaliPipeline] = WeakSet()
        is_long = self.plan(0).has_runs and len(self.shards.usable) > LARGEST_RECORD_SHUFFLE
        most = _MOST_POSITIONS if is_long else _MOST_RUNS
        self._most_positions = most // self.world_size
        self._most_steps = max(1, self._most_positions // self.batch.batch_size)
        # Several replicas share the process's threads, so their times cannot be told apart.
        can_check = self.device == "gpu" and self.world_size == 1 and not self.augment.is_evaluation
        self._host_check = HostCheck(self.shards.sizes) if can_check else None

    @property
    def device(self) -> str:
        return self.options.device

    @cached_property
    def _pulled(self) -> PulledDatasets:
        return PulledDatasets(self.batch, is_evaluation=self.augment.is_evaluation)

    def make_dataset(self, segment: Segment) -> tf.data.Dataset:
        if self.device != "gpu" or not segment.steps:
            return self._pulled.make(segment, self._stream)
        # No Python between DALI and the training step.
        if segment.positions > self._most_positions and segment.steps > self.steps_per_epoch:
            what = f"loader dali: {segment.positions:,} records are too many for one dataset on a GPU"
            raise UserError(what, remedy="open fewer epochs at once, or read `batches`")
        pipeline = self._pipeline(segment)
        return OwnedDataset(pipeline.dataset(), pipeline)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        batches = super().batches(epoch, start_step)
        return batches if self._host_check is None else self._checked(batches, self._host_check)

    def _checked(self, batches: Iterator[Any], check: HostCheck) -> Generator[Any, None, None]:
        """The same batches. Logs one line, once for each loader, if the GPU's images are decoded on the host."""
        try:
            for batch in batches:
                yield batch
                if warning := check.count(self.batch.batch_size):
                    _log.warning("loader dali: %s", warning)
        finally:
            batches.close()  # type: ignore[attr-defined]

    def close(self) -> None:
        self.pace.stop()
        super().close()
        for pipeline in list(self.pipelines):
            pipeline.close()
        self.writer.close()
        self.index_folders.close()
        if self.device == "gpu":
            _release_gpu_memory()

    def _pipeline(self, segment: Segment) -> _DaliPipeline:
        return _DaliPipeline(segment, self)

    def dali_dataset(self, files: PlanFiles) -> tf.data.Dataset:
        """The dataset of DALI's pipeline for a written plan, without an end."""
        from nvidia.dali.plugin import tf as dali_tf

        batch, options = self.batch, self.options
        on_gpu = options.device == "gpu"
        count, size = batch.batch_size, batch.image_size
        graph = build_graph(
            files,
            batch,
            self.augment,
            self.shards.label_base,
            options,
            preallocate=options.decoder.preallocation(self.shards.sizes) if on_gpu else (0, 0),
            native=not on_gpu and native.available(),
        )
        outputs = 3 if self.augment.is_evaluation else 2
        with tf.device(f"/gpu:{options.gpu}" if on_gpu else "/cpu:0"):
            # DALIDataset takes what it is not told from its own defaults, not from the pipeline.
            return dali_tf.DALIDataset(
                pipeline=graph,
                batch_size=count,
                num_threads=options.workers,
                device_id=physical_gpu(options.gpu, _parts_of_gpus()) if on_gpu else None,
                prefetch_queue_depth=options.prefetch,
                output_shapes=((count, size, size, 3), (count,), (count,))[:outputs],
                output_dtypes=(tf.as_dtype(batch.dtype), tf.int32, tf.float32)[:outputs],
            )
