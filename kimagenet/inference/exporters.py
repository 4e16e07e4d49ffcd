"""Writes a model in formats of other programs, and reads it again to compare it with the Keras model."""

import re
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kimagenet.networks.rebuild import rebuilt
from pipelines.augment import AugmentSpec
from pipelines.images import ImageReader
from pipelines.loader import BatchSpec
from pipelines.tf_image import evaluation_work, paint

ONNX_OPSET = 18
_WILDCARDS = re.compile(r"[*?\[\\]")
_SIZES = ((64, 64), (90, 160), (333, 221), (500, 375))  # height, width of the images for the comparison


def use_cpu() -> None:
    """Hides GPUs: their convolutions round to 10 bits, and this work is too small for one."""
    tf.config.set_visible_devices([], "GPU")


def in_float32(model: keras.Model) -> keras.Model:
    """The model, or a copy that computes in float32: converters do not support mixed precision."""
    if all(
        layer.compute_dtype == "float32" for layer in model._flatten_layers() if isinstance(layer, keras.layers.Layer)
    ):
        return model
    return rebuilt(model, model.input_shape[1])


class Exporter(ABC):
    """Writes and reads one format.

    Attributes:
        takes: describes its input; {size} stands for the image size.
    """

    takes: str

    @abstractmethod
    def write(
        self, model: keras.Model, batch: BatchSpec, augment: AugmentSpec, folder: Path, short_side: int | None = None
    ) -> None:
        """Writes a model.

        Args:
            model: computes in float32.
            batch: its image size and dtype.
            augment: how images are cut and scaled.
            folder: where to write; it has classes.txt already.
            short_side: the shorter side to which the builder shrank larger images, pixels; None: it did not.

        Raises:
            OSError: there is no room.
        """

    @abstractmethod
    def compare(
        self, model: keras.Model, batch: BatchSpec, augment: AugmentSpec, folder: Path, short_side: int | None = None
    ) -> tuple[float, int]:
        """Compares what `write` wrote with the Keras model; takes the same arguments.

        Returns:
            The largest difference of a probability, and the number of images.
        """


class SavedModel(Exporter):
    """A SavedModel of image files: decoding, shrinking, cutting and scaling are in its graph.

    It returns `probabilities`, float32 [N, classes], and `readable`, bool [N]. A file that TensorFlow cannot decode has
    a row of NaN and false; it changes nothing for the other files. N may be 0.
    """

    takes = "jpeg: string [N], files of JPEG, PNG, GIF, BMP or WebP"

    def write(
        self, model: keras.Model, batch: BatchSpec, augment: AugmentSpec, folder: Path, short_side: int | None = None
    ) -> None:
        def prepare(place: tf.Tensor, encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            pixels = decode(encoded, short_side)
            work = evaluation_work(tf.shape(pixels)[:2], batch, augment)
            y, x, height, width = tf.unstack(work.box)
            return place, paint(pixels[y : y + height, x : x + width], work, batch, augment)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="jpeg")])
        def serve(jpeg: tf.Tensor) -> dict[str, tf.Tensor]:
            count = tf.size(jpeg, tf.int64)
            files = tf.data.Dataset.from_tensor_slices((tf.range(count), jpeg))
            read = files.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
            # An image of no file at the end: there is at least one row, which the model gets if no file is readable.
            end = tf.zeros((batch.image_size, batch.image_size, 3), batch.dtype)
            whole = read.concatenate(tf.data.Dataset.from_tensors((count, end)))
            places, images = whole.batch(count + 1).get_single_element()
            used = tf.maximum(tf.size(places) - 1, 1)
            found, where = model(images[:used], training=False), places[:used, None]
            unreadable = tf.fill([count + 1, model.output_shape[-1]], np.float32("nan"))
            readable = tf.scatter_nd(where, tf.ones([used], tf.int32), [count + 1])
            rows = tf.tensor_scatter_nd_update(unreadable, where, found)
            return {"probabilities": rows[:count], "readable": readable[:count] > 0}

        module = _Holder(model)
        with _without_wildcards(folder) as path:
            module.classes = tf.saved_model.Asset(f"{path}/classes.txt")
            try:
                tf.saved_model.save(module, path, signatures=serve)
            except tf.errors.OpError as error:  # for disks its text has "FILE; REASON"
                if reason := re.search(rf"{re.escape(path)}\S*; ([^\[\n]*[^\[\s])", error.message):
                    raise OSError(reason[1]) from error
                raise

    def compare(
        self, model: keras.Model, batch: BatchSpec, augment: AugmentSpec, folder: Path, short_side: int | None = None
    ) -> tuple[float, int]:
        # Not shrunk: TensorFlow's and Pillow's resize round differently.
        most = short_side or max(max(size) for size in _SIZES)
        jpegs = [tf.io.encode_jpeg(_noise(min(height, most), min(width, most))).numpy() for height, width in _SIZES]
        reader = ImageReader(batch, augment)
        images = np.stack([reader.pixels(jpeg) for jpeg in jpegs])
        with _without_wildcards(folder) as path:
            serve = tf.saved_model.load(path).signatures["serving_default"]
            return _largest_difference(model, images, serve(jpeg=tf.constant(jpegs))["probabilities"].numpy())


class Onnx(Exporter):
    """ONNX of float images, by tf2onnx; compared with onnxruntime."""

    takes = "images: float32 [N, {size}, {size}, 3] in -1 to 1"

    def write(
        self, model: keras.Model, batch: BatchSpec, augment: AugmentSpec, folder: Path, short_side: int | None = None
    ) -> None:
        import tf2onnx

        serve = _serve_images(model, batch)
        found, _ = tf2onnx.convert.from_function(serve, serve.input_signature, opset=ONNX_OPSET)
        for value in (*found.graph.input, *found.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "N"  # tf2onnx names it after a counter
        (folder / "model.onnx").write_bytes(found.SerializeToString())

    def compare(
        self, model: keras.Model, batch: BatchSpec, augment: AugmentSpec, folder: Path, short_side: int | None = None
    ) -> tuple[float, int]:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        images = _noisy_images(batch)
        return _largest_difference(model, images, session.run(["probabilities"], {"images": images})[0])


class TFLite(Exporter):
    """TFLite of float images, by TensorFlow's converter, without quantization."""

    takes = Onnx.takes

    def write(
        self, model: keras.Model, batch: BatchSpec, augment: AugmentSpec, folder: Path, short_side: int | None = None
    ) -> None:
        serve, holder = _serve_images(model, batch), _Holder(model)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], holder)
        converter.experimental_enable_resource_variables = False  # otherwise the file has variables without values
        (folder / "model.tflite").write_bytes(converter.convert())

    def compare(
        self, model: keras.Model, batch: BatchSpec, augment: AugmentSpec, folder: Path, short_side: int | None = None
    ) -> tuple[float, int]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the interpreter's future package
            interpreter = tf.lite.Interpreter(str(folder / "model.tflite"))
        images = _noisy_images(batch)
        found = interpreter.get_signature_runner()(images=images)["probabilities"]
        return _largest_difference(model, images, found)


_PALETTE = 54  # place of a BMP's palette, behind its usual headers
_GREY_PALETTE = b"".join(bytes((level, level, level, 0)) for level in range(256))

EXPORTERS: dict[str, Exporter] = {"savedmodel": SavedModel(), "onnx": Onnx(), "tflite": TFLite()}


def decode(encoded: tf.Tensor, short_side: int | None = None) -> tf.Tensor:
    """Decodes an image as a build of shards and a loader would do it: like `clean_image`, then a decoder.

    Args:
        encoded: scalar string, a JPEG, PNG, GIF (its first frame), BMP or WebP. EXIF is ignored, alpha is dropped.
        short_side: images with a longer shorter side, pixels, are shrunk to this one; None: none are.

    Returns:
        uint8 [H, W, 3].

    Raises:
        tf.errors.OpError: TensorFlow cannot decode it.
    """
    is_jpeg = tf.io.is_jpeg(encoded)
    pixels = tf.cond(
        is_jpeg,
        lambda: _decode_jpeg(encoded),
        lambda: _decode_other(encoded),
    )
    pixels = tf.ensure_shape(pixels, (None, None, 3))
    if short_side is None:
        return tf.cond(is_jpeg, lambda: pixels, lambda: _as_jpeg(pixels, False))
    is_large = tf.reduce_min(tf.shape(pixels)[:2]) > short_side
    return tf.cond(
        is_large,
        lambda: _as_jpeg(_shrunk(pixels, short_side), True),
        lambda: tf.cond(is_jpeg, lambda: pixels, lambda: _as_jpeg(pixels, False)),
    )


def _decode_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def _decode_other(encoded: tf.Tensor) -> tf.Tensor:
    """PNG, GIF, BMP and WebP. TensorFlow takes the places in a BMP's palette for grey levels, so they must be those."""
    # `substr` fails behind the end, and some whole images have 38 bytes.
    head = tf.strings.join([tf.strings.substr(encoded, 0, _PALETTE + len(_GREY_PALETTE)), b" " * _PALETTE])
    has_palette = tf.logical_and(tf.strings.substr(head, 0, 2) == b"BM", tf.strings.substr(head, 28, 2) == b"\x08\x00")
    palette = tf.strings.substr(head, _PALETTE, len(_GREY_PALETTE))
    is_right = tf.logical_or(tf.logical_not(has_palette), palette == _GREY_PALETTE)
    with tf.control_dependencies([tf.debugging.Assert(is_right, ["a BMP with a palette of colours"])]):
        return tf.io.decode_image(tf.identity(encoded), channels=3, expand_animations=False)


def _as_jpeg(pixels: tf.Tensor, is_shrunk: bool) -> tf.Tensor:
    """What the builder's JPEG of these pixels gives: quality 95, chroma 4:2:0 if shrunk, else 4:4:4."""
    return _decode_jpeg(tf.io.encode_jpeg(pixels, quality=95, chroma_downsampling=is_shrunk))


def _shrunk(pixels: tf.Tensor, short_side: int) -> tf.Tensor:
    """The same size as in the builder, with the same filter. Pillow resizes the width first and rounds in between."""
    size = tf.cast(tf.shape(pixels)[:2], tf.float64)
    scaled = tf.cast(tf.round(size * (short_side / tf.reduce_min(size))), tf.int32)
    height, width = tf.unstack(tf.maximum(scaled, short_side))
    for shape in ((tf.shape(pixels)[0], width), (height, width)):
        resized = tf.image.resize(pixels, tf.stack(shape), "lanczos3", antialias=True)
        pixels = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
    return pixels


class _Holder(tf.Module):
    """Lists a model's variables for TensorFlow, which does not find those inside a Keras model."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.variables_of_model = [variable.value for variable in model.variables]
        self.classes: Any = None


@contextmanager
def _without_wildcards(folder: Path) -> Iterator[str]:
    """A path of a folder without *, ?, [ and \\, which TensorFlow takes for patterns: through a temporary link."""
    if not _WILDCARDS.search(str(folder)):
        yield str(folder)
        return
    with tempfile.TemporaryDirectory(prefix="kimagenet-export-") as temporary:
        link = Path(temporary) / "export"
        link.symlink_to(folder.absolute())
        yield str(link)


def _serve_images(model: keras.Model, batch: BatchSpec) -> Any:
    shape = (None, batch.image_size, batch.image_size, 3)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="images")])
    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(images, training=False)}

    return serve


def _noise(height: int, width: int) -> tf.Tensor:
    """An image of smooth random colours, uint8 [height, width, 3]."""
    coarse = np.random.default_rng(height).uniform(0, 255, (8, 8, 3)).astype(np.float32)
    return tf.cast(tf.image.resize(coarse, (height, width)), tf.uint8)


def _noisy_images(batch: BatchSpec) -> np.ndarray:
    shape = (len(_SIZES), batch.image_size, batch.image_size, 3)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def _largest_difference(model: keras.Model, images: np.ndarray, found: np.ndarray) -> tuple[float, int]:
    expected = np.asarray(model(images, training=False))
    return float(np.abs(found - expected).max()), len(images)
