"""Executes the plan of one image with TensorFlow: decode, warp, colour. Used wherever DALI is not."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipelines.augment import ROUNDING, AugmentSpec, Draws, is_plain_shrink
from pipelines.loader import BatchSpec
from pipelines.shards.shard_set import MOST_PIXELS
from pipelines.uniform import RecordUniform

_EXACT = 1e-3  # pixels: the tolerance within which a warp counts as the resize of a region of whole pixels
# Buffer sizes for regions, in bytes. XLA compiles once for each size that it meets.
_ROOMS = 2 ** np.arange(12, (3 * MOST_PIXELS).bit_length() + 1, dtype=np.int32)
_MARGIN = 4  # columns decoded on either side of a region, so that its edges are exact


class Work(NamedTuple):
    """What `render` needs for one image; for N images the arrays have one more axis in front.

    Attributes:
        box: int32 [4]; (y, x, height, width) of the region to decode.
        affine: float32 [2, 3]; output → decoded region, both with pixels whose centres are integers.
        colour: float32 [3, 4]; (R, G, B, 1) in 0…255 → the output's range, not yet clipped.
        resize: bool; whether the output is just the region resized, mirrored or not.
    """

    box: np.ndarray
    affine: np.ndarray
    colour: np.ndarray
    resize: np.ndarray

    @classmethod
    def of(cls, draws: Draws, batch: BatchSpec, augment: AugmentSpec) -> "Work":
        """Converts the plan's draws, in which pixels begin at corners and colours are in 0…255."""
        affine = between_pixel_centres(draws.affine, draws.box).astype(np.float32)
        covered = batch.image_size * draws.affine[:, [1, 0], [1, 0]]
        first = draws.affine[:, [1, 0], 2] + np.minimum(covered, 0)
        reached = np.concatenate([first, np.abs(covered)], axis=1)  # as a box; of an image that is not turned
        resize = np.abs(reached - draws.box).max(axis=1) < _EXACT
        if augment.turns:  # outside is black then, but a resize repeats the edge
            resize &= is_plain_shrink(draws.affine)
        return cls(draws.box, affine, batch.to_output_range(draws.colour).astype(np.float32), resize)


def evaluation_work(size: tf.Tensor, batch: BatchSpec, augment: AugmentSpec) -> Work:
    """`Work.of` for the evaluation of one image of any size, in TensorFlow operations. Exported models use it.

    It computes the same sums in the same order as `AugmentSpec`, so that both round alike.

    Args:
        size: [2], height and width of the image in pixels.
        batch: size and dtype of the output.
        augment: an evaluation.
    """
    assert augment.center_crop is not None
    limits = tf.cast(size, tf.float64)  # (height, width), as everything below
    side = tf.reduce_min(limits) * augment.center_crop
    scale = side / batch.image_size
    first = ((limits - side) / 2 - limits / 2) + limits / 2
    low = tf.clip_by_value(tf.floor(first + ROUNDING), 0.0, limits - 1)
    high = tf.clip_by_value(tf.math.ceil(first + scale * batch.image_size - ROUNDING), low + 1, limits)
    resize = tf.reduce_max(tf.abs(high - low - side)) < _EXACT
    shift = first + (scale / 2 - 0.5 - low)
    zero = tf.zeros((), tf.float64)
    affine = tf.stack([tf.stack([scale, zero, shift[1]]), tf.stack([zero, scale, shift[0]])])
    one = np.ones(1)
    draws = augment.draw(RecordUniform(0, 0, np.zeros(1, np.int64)), one, one, batch.image_size)
    colour = Work.of(draws, batch, augment).colour
    box = tf.cast(tf.concat([low, high - low], axis=0), tf.int32)
    return Work(box, tf.cast(affine, tf.float32), colour[0], resize)


def between_pixel_centres(affine: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Converts the plan's matrices to pixels with integer centres, relative to the box.

    Args:
        affine: float64 [N, 2, 3], output → source, pixels beginning at corners.
        box: int [N, 4]; (y, x, height, width).

    Returns:
        float64 [N, 2, 3], output → box.
    """
    shifted = affine.copy()
    shifted[:, :, 2] += affine[:, :, :2].sum(axis=2) / 2 - 0.5 - box[:, [1, 0]]
    return shifted


def render(encoded: tf.Tensor, work: Work, batch: BatchSpec, augment: AugmentSpec) -> tf.Tensor:
    """Decodes, warps and colours one image.

    Args:
        encoded: scalar string, the JPEG.
        work: from `Work.of`, for this image.
        batch: size and dtype of the output.
        augment: the spec of the draws.

    Returns:
        [image_size, image_size, 3] of the batch's dtype and range.
    """
    return paint(_decode(encoded, work.box), work, batch, augment)


def paint(region: tf.Tensor, work: Work, batch: BatchSpec, augment: AugmentSpec) -> tf.Tensor:
    """`render` for a region that is already decoded, uint8 [H, W, 3]."""
    size = batch.image_size
    warp = _warp_turned if augment.turns else _warp_straight
    image = tf.cond(work.resize, lambda: _resize(region, work.affine, size), lambda: warp(region, work.affine, size))
    finish = _recolour if augment.jitters else _scale
    return finish(tf.ensure_shape(image, (size, size, 3)), work.colour, batch.dtype)


def _decode(encoded: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """Decodes the box of a JPEG (scalar string): uint8 [height, width, 3], equal to that part of the whole image."""
    # libjpeg interpolates chroma only inside the requested region, and not at all in narrow regions.
    y, x, height, width = tf.unstack(box)
    first = tf.maximum(x - _MARGIN, 0)
    last = tf.minimum(x + width + _MARGIN, tf.image.extract_jpeg_shape(encoded)[1])
    # The default IDCT is a fast approximation with errors over one grey level. This one equals Pillow's and DALI's.
    wider = tf.stack([y, first, height, last - first])
    region = tf.image.decode_and_crop_jpeg(encoded, wider, channels=3, dct_method="INTEGER_ACCURATE")
    return tf.slice(region, tf.stack([0, x - first, 0]), tf.stack([height, width, 3]))


def _resize(image: tf.Tensor, affine: tf.Tensor, size: int) -> tf.Tensor:
    """uint8 [H, W, 3] → float32 [size, size, 3]: the whole region, mirrored if `affine` mirrors."""
    resized = tf.image.resize(image, [size, size])
    return tf.cond(affine[0, 0] < 0, lambda: tf.reverse(resized, [1]), lambda: resized)


def _warp_turned(image: tf.Tensor, affine: tf.Tensor, size: int) -> tf.Tensor:
    """The same for any affine matrix, bilinear; outside is black."""
    pixels = tf.reshape(image, [-1])
    room = tf.reduce_min(tf.boolean_mask(_ROOMS, tf.size(pixels) <= _ROOMS))
    return _sample(tf.pad(pixels, [[0, room - tf.size(pixels)]]), tf.shape(image)[:2], affine, size)


@tf.function(jit_compile=True, autograph=False)
def _sample(pixels: tf.Tensor, shape: tf.Tensor, affine: tf.Tensor, size: int) -> tf.Tensor:
    """`_warp_turned` of a uint8 image in a flat buffer; compiled to one loop, once for each buffer size."""
    grid = tf.range(size, dtype=tf.float32)
    x, y = (row[0] * grid[None, :] + row[1] * grid[:, None] + row[2] for row in tf.unstack(affine))
    left, top = tf.floor(x), tf.floor(y)

    def corner(column: tf.Tensor, row: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        inside = (column >= 0) & (column < shape[1]) & (row >= 0) & (row < shape[0])
        first = 3 * tf.where(inside, row * shape[1] + column, 0)
        colour = tf.cast(tf.gather(pixels, first[:, :, None] + tf.range(3)), tf.float32)
        return colour * tf.where(inside, weight, 0.0)[:, :, None]

    right, down = x - left, y - top
    column, row = tf.cast(left, tf.int32), tf.cast(top, tf.int32)
    above = corner(column, row, (1 - right) * (1 - down)) + corner(column + 1, row, right * (1 - down))
    return above + corner(column, row + 1, (1 - right) * down) + corner(column + 1, row + 1, right * down)


def _warp_straight(image: tf.Tensor, affine: tf.Tensor, size: int) -> tf.Tensor:
    """The same for matrices that only scale, shift and mirror. Edges repeat. Costs three times as much as a resize."""
    framed = tf.pad(image, [[1, 1], [1, 1], [0, 0]], "SYMMETRIC")  # the operator is black in the outermost half pixel
    last = tf.cast(tf.shape(framed)[:2] - 1, tf.float32)
    scale = tf.stack([affine[1, 1], affine[0, 0]])
    first = tf.stack([affine[1, 2], affine[0, 2]]) + 1
    corners = tf.concat([first / last, (first + scale * (size - 1)) / last], axis=0)
    return tf.image.crop_and_resize(framed[None], corners[None], [0], [size, size])[0]


def _scale(image: tf.Tensor, colour: tf.Tensor, dtype: str) -> tf.Tensor:
    """float32 [S, S, 3] → the output's range, with a colour matrix that only scales."""
    return _to_output(image * colour[0, 0] + colour[0, 3], dtype)


@tf.function(jit_compile=True, autograph=False)
def _recolour(image: tf.Tensor, colour: tf.Tensor, dtype: str) -> tf.Tensor:
    """The same with any colour matrix. A matmul would wait for threads that work on other images."""
    mixed = sum(image[:, :, channel, None] * colour[:, channel] for channel in range(3))
    return _to_output(mixed + colour[:, 3], dtype)


def _to_output(image: tf.Tensor, dtype: str) -> tf.Tensor:
    """Clips to the output's range and casts."""
    if dtype == "uint8":
        return tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)
    return tf.cast(tf.clip_by_value(image, -1.0, 1.0), dtype)
