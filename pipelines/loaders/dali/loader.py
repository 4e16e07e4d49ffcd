"""Opens a DALI pipeline for each epoch as a tf.data dataset; the next epoch's plan is written in the background."""

import contextlib
import ctypes
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
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
from pipelines.loaders.dali.plan_files import PlanFiles, make_folder, write_plan
from pipelines.system.memory import return_free_memory


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


@dataclass(frozen=True)
class _Prepared:
    """A plan on disk, ready to be read."""

    folder: tempfile.TemporaryDirectory
    files: PlanFiles


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

    def hurry(self) -> None:
        """No rests from now on, until `relax`."""
        self._wanted.set()

    def relax(self) -> None:
        """Nobody waits any more."""
        self._wanted.clear()


class DaliLoader(Loader):
    """Decodes and augments in DALI. While one epoch is read, the next one's plan is written in the background."""

    name = "dali"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        _hold_decoders()
        self._background = ThreadPoolExecutor(1, "kimagenet-plan")
        self._prepared: dict[tuple[int, int], Future[_Prepared]] = {}
        self._leisure = _Leisure()

    def epoch(self, epoch: int, start_step: int = 0) -> tf.data.Dataset:
        steps = self.plan(epoch).steps_per_epoch - start_step
        if steps == 0:
            return self._empty()
        current = self._prepare(epoch, start_step)
        self._leisure.hurry()
        self._release_except(epoch - 1, epoch, epoch + 1)
        try:
            files = current.result().files
        except OSError as error:
            del self._prepared[epoch, start_step]
            raise UserError(f"the plan of epoch {epoch} cannot be written: {error}") from error
        self._leisure.relax()
        if not self.augment.is_evaluation:
            self._prepare(epoch + 1, 0)
        dataset = self._dataset(files)
        # tf.data has hardly an operation on the GPU, so nothing may follow there: readers count steps_per_epoch.
        if self.options.device != "gpu":
            dataset = _finish(dataset.element_spec)(dataset, np.int64(steps))
        dataset._kimagenet_loader = self  # whose plans it reads: they are removed with the loader
        return dataset

    def skip(self, records: Iterable[int]) -> None:
        super().skip(records)
        self._release_except()

    def close(self) -> None:
        super().close()
        self._leisure.hurry()
        self._background.shutdown(wait=True, cancel_futures=True)
        self._release_except()

    def _prepare(self, epoch: int, start_step: int) -> Future[_Prepared]:
        key = epoch, start_step
        if key not in self._prepared:
            self._prepared[key] = self._background.submit(self._write, epoch, start_step)
        return self._prepared[key]

    def _write(self, epoch: int, start_step: int) -> _Prepared:
        plan = self.plan(epoch, start_step)
        folder = make_folder(plan)
        on_gpu = self.options.device == "gpu"
        files = write_plan(plan, self.batch, Path(folder.name), self._leisure.rest, whole_images=on_gpu)
        return _Prepared(folder, files)

    def _release_except(self, *epochs: int) -> None:
        """Removes the plans of other epochs, and what their pipelines have freed."""
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

    def _empty(self) -> tf.data.Dataset:
        size = self.batch.image_size
        images = tf.zeros((0, self.batch.batch_size, size, size, 3), self.batch.dtype)
        labels = tf.zeros((0, self.batch.batch_size), tf.int32)
        weights = tf.zeros((0, self.batch.batch_size), tf.float32)
        parts = (images, labels, weights) if self.augment.is_evaluation else (images, labels)
        return tf.data.Dataset.from_tensor_slices(parts)
