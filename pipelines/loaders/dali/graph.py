"""The DALI graph of a plan, one function for the GPU and the CPU. Imports no TensorFlow.

Nothing in the graph is random and nothing is decided there: the record reader follows the plan's order, a second
reader brings the plan's matrices, one warp and one colour operation apply them.

A CPU decodes only the planned box of each image. A GPU decodes whole images: nvImageCodec 0.9 decodes regions of
subsampled JPEGs on the host without a warning, or ends the process (NVIDIA/nvImageCodec#55).
"""

from typing import Any

import numpy as np

from pipelines.augment import AugmentSpec
from pipelines.decoding import DecoderOptions
from pipelines.loader import BatchSpec, LoaderOptions
from pipelines.loaders.dali.plan_files import PLAN, PLAN_FLOATS, PlanFiles, reads_box


def build_graph(
    files: PlanFiles,
    batch: BatchSpec,
    augment: AugmentSpec,
    label_base: int,
    options: LoaderOptions,
    *,
    preallocate: tuple[int, int] = (0, 0),
    native: bool = False,
    standalone: bool = False,
) -> Any:
    """The DALI pipeline of a plan.

    With `options.device` "gpu" it can be built into a graph and serialized on a machine without a GPU, but not run.
    The graph that decodes whole images also runs on the CPU, which tests and rehearsals use.

    Args:
        files: the plan. On a GPU it must be written for whole images.
        batch: shape and dtype of a batch.
        augment: the spec that the plan was made with.
        label_base: the stored label of the first class.
        options: device, threads, queues and decoder.
        preallocate: height and width in pixels that the GPU's decoder reserves memory for.
        native: whether our own operator (`native.available`) does the work of DALI's warp, colour and clip. It runs on
            the CPU only, and not with plans for whole images.
        standalone: whether the pipeline is run by itself on `options.gpu`, not by DALI's TensorFlow plugin.

    Returns:
        A `nvidia.dali.Pipeline` of (images, labels), for evaluation (images, labels, weights), all on the device.
    """
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = options.device == "gpu"
    if on_gpu and not files.whole_images:
        raise ValueError("a GPU needs a plan for whole images")
    if native and files.whole_images:
        raise ValueError("our CPU operator needs a plan for boxes")
    dtypes = [_dali_dtype(batch.dtype), types.INT32, types.FLOAT]
    outputs = 3 if augment.is_evaluation else 2

    @pipeline_def(
        batch_size=batch.batch_size,
        num_threads=options.workers,
        device_id=options.gpu if on_gpu and standalone else None,
        prefetch_queue_depth=options.prefetch,
        output_dtype=dtypes[:outputs],
        output_ndim=[3, 0, 0][:outputs],
    )
    def graph() -> tuple[Any, ...]:
        encoded, stored_label, plan = read(files, options.decoder.reader_queue)
        if files.whole_images:
            whole = decode_whole(encoded, options.decoder, preallocate, on_gpu)
            image = _transform_whole(whole, plan, batch, augment)
        else:
            image = _transform_box(encoded, plan, batch, native, repeat_edges=not augment.turns)
        label = fn.cast(stored_label, dtype=types.INT32) - label_base
        parts = (image, label, plan[22])[:outputs]
        return tuple(part.gpu() for part in parts) if on_gpu else parts

    return graph()


def _transform_whole(image: Any, plan: Any, batch: BatchSpec, augment: AugmentSpec) -> Any:
    """Warp and colour of whole images."""
    from nvidia.dali import fn

    affine, colour, box = _parts_of(plan)
    if reads_box(augment, whole_images=True):  # its edges count, as where only the box is decoded
        image = fn.slice(image, box[0:2], box[2:4], **_PIXELS)
    image = _warp_affine(image, affine, batch.image_size, repeat_edges=not augment.turns)
    return _colour(image, colour, batch.dtype, is_float=True)


def _transform_box(encoded: Any, plan: Any, batch: BatchSpec, native: bool, *, repeat_edges: bool) -> Any:
    """Decoding of the planned box, warp and colour; the last two by our own operator if `native`."""
    from nvidia.dali import fn

    affine, colour, box = _parts_of(plan)
    image = _decode_box(encoded, box)
    if native:
        given = {"size": batch.image_size, "dtype": _dali_dtype(batch.dtype), "repeat_edges": repeat_edges}
        return fn.kimagenet_warp_colour(image, plan, **given)
    return _colour(_warp(image, affine, batch.image_size, repeat_edges), colour, batch.dtype, is_float=False)


def _parts_of(plan: Any) -> tuple[Any, Any, Any]:
    """The affine matrix, the colour matrix and the box in the plan's floats."""
    from nvidia.dali import fn

    return fn.reshape(plan[0:6], shape=[2, 3]), fn.reshape(plan[6:18], shape=[3, 4]), plan[18:22]


def read(files: PlanFiles, queue: int) -> tuple[Any, Any, Any]:
    """JPEG, label as it is stored, and the plan's floats: two readers in lockstep."""
    from nvidia.dali import fn, tfrecord

    reading = {
        # Lazily: an error at construction inside DALIDataset would abort the process, later it is an exception.
        "lazy_init": True,
        "prefetch_queue_depth": queue,
        # With a mapped file, a shard that shrinks or a disk that fails would end the process by a signal. DALI also
        # keeps a note of every file that it has ever mapped, and each epoch's plan is a new file.
        "dont_use_mmap": True,
    }
    names = files.features
    record = fn.readers.tfrecord(
        name="records",
        path=files.shards,
        index_path=files.indexes,
        features={
            names.image: tfrecord.FixedLenFeature((), tfrecord.string, ""),
            names.label: tfrecord.FixedLenFeature([1], tfrecord.int64, -1),
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
    return record[names.image], record[names.label][0], plan[PLAN]


# How boxes are given: (y, x) and (height, width) in pixels.
_PIXELS = {"axis_names": "HW", "normalized_anchor": False, "normalized_shape": False}


def decode_whole(encoded: Any, decoder: DecoderOptions, preallocate: tuple[int, int], on_gpu: bool) -> Any:
    """The whole image: RGB uint8 HWC. `preallocate` is a height and a width in pixels."""
    from nvidia.dali import fn, math, types

    # The decoder must wait for the operator that reads the heads: see `_decode_box`. It takes no argument that could
    # depend on it, so the length of its input does: max(length, min(height, 1)) is the length.
    head = fn.peek_image_shape(encoded, adjust_orientation=False, dtype=types.INT32)
    length = encoded.shape(dtype=types.INT32)
    checked = fn.reshape(encoded, shape=math.max(length, math.min(head[0:1], 1)))
    if not on_gpu:
        return fn.decoders.image(checked, device="cpu", output_type=types.RGB, **_AS_LIBJPEG)
    return fn.decoders.image(
        checked,
        device="mixed",
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=decoder.fancy_upsampling,
        hw_decoder_load=decoder.hw_decoder_load,
        preallocate_height_hint=preallocate[0],
        preallocate_width_hint=preallocate[1],
    )


_AS_LIBJPEG = {
    "adjust_orientation": False,  # the builder has applied it, so that every loader sees the same pixels
    "jpeg_fancy_upsampling": True,
}


def _decode_box(encoded: Any, box: Any) -> Any:
    """The planned box of the image, on the CPU: RGB uint8 HWC."""
    from nvidia.dali import fn, math, types

    # DALI 2.4's decoder ends the process (SIGSEGV) when it finds bytes that are no image while it decodes the others of
    # the batch. So an operator that only reads heads comes first, and the decoder waits for its result.
    shape = fn.peek_image_shape(encoded, adjust_orientation=False, dtype=types.FLOAT)
    corner = math.min(box[0:2], shape[0:2])  # the box is inside the image, so this changes nothing
    return fn.decoders.image_slice(
        encoded, corner, box[2:4], device="cpu", output_type=types.RGB, **_AS_LIBJPEG, **_PIXELS
    )


def _warp_affine(image: Any, affine: Any, size: int, repeat_edges: bool) -> Any:
    """One bilinear warp by the output → source matrix, in float32; outside is the edge, or black. GPU and CPU."""
    from nvidia.dali import fn, types

    black = {} if repeat_edges else {"fill_value": 0.0}  # without a value it repeats the edge
    return fn.warp_affine(image, matrix=affine, size=[size, size], inverse_map=True, dtype=types.FLOAT, **black)


def _warp(image: Any, affine: Any, size: int, repeat_edges: bool) -> Any:
    """The same by OpenCV, on the CPU, where fn.warp_affine takes three times as long; rounded to whole grey levels."""
    from nvidia.dali import fn, types

    bottom = types.Constant(np.array([[0, 0, 1]], np.float32), device="cpu")
    border = {"border_mode": "replicate"} if repeat_edges else {"border_mode": "constant", "fill_value": 0.0}
    return fn.experimental.warp_perspective(
        image, matrix=fn.cat(affine, bottom, axis=0), size=[size, size], pixel_origin="corner", **border
    )


def _dali_dtype(dtype: str) -> Any:
    from nvidia.dali import types

    return {"float32": types.FLOAT, "float16": types.FLOAT16, "uint8": types.UINT8}[dtype]


def _colour(image: Any, colour: Any, dtype: str, is_float: bool) -> Any:
    """One colour matrix, which also holds the scaling, and the clip to the output's range.

    `is_float` says whether the image is float32, else uint8: DALI only gives uint8 for uint8.
    """
    from nvidia.dali import fn, math, types

    if dtype == "uint8" and not is_float:
        return fn.coord_transform(image, M=colour[:, 0:3], T=colour[:, 3], dtype=types.UINT8)  # rounds and saturates
    image = fn.coord_transform(image, M=colour[:, 0:3], T=colour[:, 3], dtype=types.FLOAT)
    if dtype != "uint8":
        image = math.clamp(image, -1.0, 1.0)
    return image if dtype == "float32" else fn.cast(image, dtype=_dali_dtype(dtype))  # uint8: rounds and saturates
