"""The DALI graph of a plan, one function for the GPU and the CPU. Imports no TensorFlow.

Nothing in the graph is random and nothing is decided there: the record reader follows the plan's order, a second
reader brings the plan's matrices, one warp and one colour operation apply them.
"""

from typing import Any

import numpy as np

from pipelines.augment import AugmentSpec
from pipelines.loader import BatchSpec
from pipelines.loaders.dali.plan_files import PLAN, PLAN_FLOATS, PlanFiles
from pipelines.shards import records


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

    `native` takes our own operator (`native.available`, CPU only) in place of DALI's warp, colour and clip.

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
