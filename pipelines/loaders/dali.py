"""The plan carried out by NVIDIA DALI, on the GPU or the CPU from one graph, through the DALI TF plugin.

Nothing in the graph is random and nothing is decided there: the record reader follows the plan's order, a second
reader brings the plan's matrices, one warp and one colour operation apply them.
"""

import contextlib
import ctypes
import importlib.util
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

from pipelines import records
from pipelines.augment import AugmentSpec
from pipelines.errors import UserError, first_line
from pipelines.loader import BatchSpec, Loader
from pipelines.loaders import _native
from pipelines.loaders._dali_files import PLAN, PLAN_FLOATS, PlanFiles, make_folder, write_plan
from pipelines.memory import return_free_memory

# TensorFlow must be there when the plugin is built.
_INSTALL = (
    "`pip install setuptools wheel packaging`, then `pip install --no-build-isolation "
    "'nvidia-dali-cuda120>=2.4,<2.5' 'nvidia-dali-tf-plugin-cuda120>=2.4,<2.5'`"
)
_REBUILD = (
    "`pip install setuptools wheel packaging`, then `pip install --no-build-isolation --no-cache-dir "
    "--force-reinstall --no-deps 'nvidia-dali-tf-plugin-cuda120>=2.4,<2.5'`"
)


def unavailable(device: str) -> str | None:
    """Why DALI cannot be used here, with the remedy; None if it can."""
    for module, package in (
        ("nvidia.dali", "nvidia-dali-cuda120"),
        ("nvidia.dali_tf_plugin", "nvidia-dali-tf-plugin-cuda120"),
    ):
        if not _is_installed(module):
            return f"package {package} is not installed ({_INSTALL})"
    try:
        importlib.import_module("nvidia.dali.plugin.tf")
    except tf.errors.NotFoundError:
        return f"DALI's TF plugin was built for another TensorFlow than {tf.__version__} (build it anew: {_REBUILD})"
    except Exception as error:  # whatever a foreign library raises while it loads, the user needs the remedy
        return f"DALI's TF plugin does not load: {first_line(error)} (build it anew: {_REBUILD})"
    if device == "gpu" and not tf.config.list_physical_devices("GPU"):
        return "TensorFlow sees no GPU (`pip install 'tensorflow[and-cuda]' nvidia-npp-cu12` brings CUDA's libraries)"
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


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


def build_graph(
    files: PlanFiles,
    batch: BatchSpec,
    augment: AugmentSpec,
    label_base: int,
    *,
    device: str,
    workers: int,
    native: bool = False,
) -> Any:
    """The DALI pipeline of a plan: (images, labels) and for evaluation weights, all on `device`.

    `native` takes our own operator (`_native.available`, CPU only) in place of DALI's warp, colour and clip.

    With `device="gpu"` it can be built into a graph and serialized on a machine without a GPU, but not run.
    Keep it one function for both devices: what differs is named in a conditional expression.
    """
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = device == "gpu"
    dtypes = [_dali_dtype(batch.dtype), types.INT32, types.FLOAT]
    outputs = 3 if augment.is_evaluation else 2

    @pipeline_def(
        batch_size=batch.batch_size,
        num_threads=workers,
        device_id=None,
        output_dtype=dtypes[:outputs],
        output_ndim=[3, 0, 0][:outputs],
    )
    def graph():
        encoded, stored_label, plan = _read(files)
        image = _decode(encoded, plan, on_gpu)
        if native:
            given = {"size": batch.image_size, "dtype": _dali_dtype(batch.dtype), "repeat_edges": not augment.turns}
            image = fn.kimagenet_warp_colour(image, plan, **given)
        else:
            image = _warp(image, fn.reshape(plan[0:6], shape=[2, 3]), batch.image_size, not augment.turns, on_gpu)
            image = _colour(image, fn.reshape(plan[6:18], shape=[3, 4]), batch.dtype)
        label = fn.cast(stored_label, dtype=types.INT32) - label_base
        parts = (image, label, plan[22])[:outputs]
        return tuple(part.gpu() for part in parts) if on_gpu else parts

    return graph()


def _read(files: PlanFiles) -> tuple[Any, Any, Any]:
    """JPEG, label as it is stored, and the plan's floats: two readers in lockstep."""
    from nvidia.dali import fn, tfrecord

    reading = {
        # Lazily: an error at construction inside DALIDataset would abort the process, later it is an exception.
        "lazy_init": True,
        "prefetch_queue_depth": 2,
        # Mapped, a shard that shrinks or a disk that fails would end the process by a signal, without a word; and DALI
        # keeps a note of every file that it has ever mapped, and each epoch's plan is a new one.
        "dont_use_mmap": True,
    }
    record = fn.readers.tfrecord(
        name="records",
        path=files.shards,
        index_path=files.indexes,
        features={
            records.ENCODED: tfrecord.FixedLenFeature((), tfrecord.string, ""),
            records.LABEL: tfrecord.FixedLenFeature([1], tfrecord.int64, -1),
        },
        **reading,
    )
    plan = fn.readers.tfrecord(
        name="plan",
        path=[files.plan],
        index_path=[files.plan_index],
        features={PLAN: tfrecord.FixedLenFeature([PLAN_FLOATS], tfrecord.float32, 0.0)},
        **reading,
    )
    return record[records.ENCODED], record[records.LABEL][0], plan[PLAN]


def _decode(encoded: Any, plan: Any, on_gpu: bool) -> Any:
    """RGB uint8 HWC: the planned box."""
    from nvidia.dali import fn, math, types

    options = {
        "device": "mixed" if on_gpu else "cpu",
        "output_type": types.RGB,
        "adjust_orientation": False,  # the builder has applied it, so that every loader sees the same pixels
        "jpeg_fancy_upsampling": True,  # as libjpeg, so that GPU and CPU agree
        "axis_names": "HW",
        "normalized_anchor": False,
        "normalized_shape": False,
    }
    # DALI 2.4's decoder ends the process (SIGSEGV) when it finds bytes that are no image while it decodes the others of
    # the batch. So an operator that reads heads alone comes first, and the decoder waits for what it says.
    shape = fn.peek_image_shape(encoded, adjust_orientation=False, dtype=types.FLOAT)
    corner = math.min(plan[18:20], shape[0:2])  # which lies in the image anyway
    return fn.decoders.image_slice(encoded, corner, plan[20:22], **options)


def _warp(image: Any, affine: Any, size: int, repeat_edges: bool, on_gpu: bool) -> Any:
    """One bilinear warp by the output → source matrix; outside is the edge, or black."""
    from nvidia.dali import fn, types

    if on_gpu:
        black = {} if repeat_edges else {"fill_value": 0.0}
        return fn.warp_affine(image, matrix=affine, size=[size, size], inverse_map=True, **black)
    # On the CPU fn.warp_affine takes thrice the time of this one, which is OpenCV's.
    bottom = types.Constant(np.array([[0, 0, 1]], np.float32), device="cpu")
    border = {"border_mode": "replicate"} if repeat_edges else {"border_mode": "constant", "fill_value": 0.0}
    return fn.experimental.warp_perspective(
        image, matrix=fn.cat(affine, bottom, axis=0), size=[size, size], pixel_origin="corner", **border
    )


def _dali_dtype(dtype: str) -> Any:
    from nvidia.dali import types

    return {"float32": types.FLOAT, "float16": types.FLOAT16, "uint8": types.UINT8}[dtype]


def _colour(image: Any, colour: Any, dtype: str) -> Any:
    """One colour matrix, which holds the scaling as well, and the clip to the output's range."""
    from nvidia.dali import fn, math, types

    linear, constant = colour[:, 0:3], colour[:, 3]
    if dtype == "uint8":
        return fn.coord_transform(image, M=linear, T=constant, dtype=_dali_dtype(dtype))  # rounds and saturates
    image = math.clamp(fn.coord_transform(image, M=linear, T=constant, dtype=types.FLOAT), -1.0, 1.0)
    return fn.cast(image, dtype=_dali_dtype(dtype)) if dtype == "float16" else image


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
        return _Prepared(folder, write_plan(plan, self.batch, Path(folder.name), self._leisure.rest))

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
            device=options.device,
            workers=options.workers,
            native=not on_gpu and _native.available(),
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


LOADER = DaliLoader
