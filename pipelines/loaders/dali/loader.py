"""Opens a DALI pipeline for each epoch as a tf.data dataset; the next epoch's plan is written in the background."""

import contextlib
import ctypes
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.errors import UserError
from pipelines.loader import Loader
from pipelines.loaders.dali import native
from pipelines.loaders.dali.graph import build_graph
from pipelines.loaders.dali.host_time import HostCheck
from pipelines.loaders.dali.plan_files import PlanFiles, make_folder, write_plan
from pipelines.system.memory import return_free_memory

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class _Prepared:
    """A plan on disk, in its temporary folder."""

    folder: tempfile.TemporaryDirectory
    files: PlanFiles


class BackgroundPace:
    """Limits background work to 5 % of its thread's time until a caller waits for it.

    A low priority would not help: the thread could lose the processor while it holds the interpreter's lock.
    """

    _REST = 19  # times as long as the work before it

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._rested = 0.0

    def rest(self) -> None:
        """Sleeps in proportion to the work since the last call. Only the thread that works calls this."""
        self._wanted.wait(self._REST * max(0.0, time.thread_time() - self._rested))
        self._rested = time.thread_time()

    def hurry(self) -> None:
        """Ends the rest, and allows no other until `relax`."""
        self._wanted.set()

    def relax(self) -> None:
        """Allows rests again."""
        self._wanted.clear()


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


class DaliLoader(Loader):
    """Decodes and augments in DALI. While one epoch is read, the next epoch's plan is written in the background."""

    name = "dali"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        _hold_decoders()
        self._background = ThreadPoolExecutor(1, "kimagenet-plan")
        self._prepared: dict[tuple[int, int], Future[_Prepared]] = {}
        self._pace = BackgroundPace()
        # Several replicas share the process's threads, so their times cannot be told apart.
        can_check = self.options.device == "gpu" and self.world_size == 1 and not self.augment.is_evaluation
        self._host_check = HostCheck(self.shards.sizes) if can_check else None

    @property
    def device(self) -> str:
        return self.options.device

    def epoch(self, epoch: int, start_step: int = 0) -> tf.data.Dataset:
        steps = self.plan(epoch).steps_per_epoch - start_step
        if steps == 0:
            return self._empty()
        current = self._prepare(epoch, start_step)
        self._pace.hurry()
        self._release_except(epoch - 1, epoch, epoch + 1)
        try:
            files = current.result().files
        except OSError as error:
            del self._prepared[epoch, start_step]
            raise UserError(
                f"the plan of epoch {epoch} cannot be written: {error.strerror or error}",
                path=error.filename,
                remedy="free some space, or set TMPDIR to another folder",
            ) from error
        self._pace.relax()
        if not self.augment.is_evaluation:
            self._prepare(epoch + 1, 0)
        dataset = self._dataset(files)
        # Most of tf.data's operations do not run on a GPU, so nothing may follow there: readers count the steps.
        if self.options.device != "gpu":
            dataset = _finish(dataset.element_spec)(dataset, np.int64(steps))
        dataset._kimagenet_loader = self  # keeps the loader, and with it the plan on disk
        return dataset

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        batches = super().batches(epoch, start_step)
        return batches if self._host_check is None else self._checked(batches, self._host_check)

    def _checked(self, batches: Iterator[Any], check: HostCheck) -> Generator[Any, None, None]:
        """The same batches. Logs one line, once for each loader, if the GPU's images are decoded on the host."""
        self._host_check = None  # the first batches tell
        try:
            for batch in batches:
                yield batch
                if warning := check.count(self.batch.batch_size):
                    _log.warning("loader dali: %s", warning)
        finally:
            batches.close()  # type: ignore[attr-defined]

    def skip(self, records: Iterable[int]) -> None:
        super().skip(records)
        self._release_except()

    def close(self) -> None:
        super().close()
        self._pace.hurry()
        self._background.shutdown(wait=True, cancel_futures=True)
        self._release_except()
        if self.options.device == "gpu":
            _release_gpu_memory()

    def _prepare(self, epoch: int, start_step: int) -> Future[_Prepared]:
        key = epoch, start_step
        if key not in self._prepared:
            self._prepared[key] = self._background.submit(self._write, epoch, start_step)
        return self._prepared[key]

    def _write(self, epoch: int, start_step: int) -> _Prepared:
        plan = self.plan(epoch, start_step)
        folder = make_folder(plan)
        on_gpu = self.options.device == "gpu"
        files = write_plan(plan, self.batch, Path(folder.name), self._pace.rest, whole_images=on_gpu)
        return _Prepared(folder, files)

    def _release_except(self, *epochs: int) -> None:
        """Removes the plans of other epochs, and returns the memory that their pipelines have freed."""
        ended = [key for key in self._prepared if key[0] not in epochs]
        for key in ended:
            future = self._prepared.pop(key)
            if not future.cancel() and future.exception() is None:
                future.result().folder.cleanup()
        if ended:
            return_free_memory()

    def _dataset(self, files: PlanFiles) -> tf.data.Dataset:
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

    def _empty(self) -> tf.data.Dataset:
        size = self.batch.image_size
        images = tf.zeros((0, self.batch.batch_size, size, size, 3), self.batch.dtype)
        labels = tf.zeros((0, self.batch.batch_size), tf.int32)
        weights = tf.zeros((0, self.batch.batch_size), tf.float32)
        parts = (images, labels, weights) if self.augment.is_evaluation else (images, labels)
        return tf.data.Dataset.from_tensor_slices(parts)
