"""The operations of a policy that the training device does, the same for every loader: see `pipelines.policy`.

Pure functions. Each operation takes whole grey levels and gives whole grey levels, as in Pillow, whose definitions
these are. Images without a tone stay as they are, to the bit.
"""

from collections.abc import Callable

import tensorflow as tf

from pipelines.policy import TONES

_LEVELS = 256
# Pillow's weights of the luma in 1/65536: sums of whole grey levels stay below 2^24, so float32 is exact.
_LUMA = (19595.0, 38470.0, 7471.0)


def apply_tones(images: tf.Tensor, tones: tf.Tensor) -> tf.Tensor:
    """Applies the tones of a batch.

    Each operation is done only for the images that have it, so a policy of one operation costs less than one operation
    for all images. The number of these images changes from batch to batch, so XLA cannot compile this.

    Args:
        images: float32 [B, H, W, 3] in [−1, 1].
        tones: float32 [B, K, 2], as `AugmentSpec.tones` gives them; one operation after the other.

    Returns:
        Images of the same shape.
    """
    for place in range(tones.shape[1]):
        images = _apply_one(images, tf.cast(tones[:, place, 0], tf.int32), tones[:, place, 1])
    return images


def _apply_one(images: tf.Tensor, numbers: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """Divides the batch by operation, and puts it together again."""
    parts = (
        tf.dynamic_partition(values, numbers, len(TONES)) for values in (tf.range(tf.size(numbers)), images, amounts)
    )
    places, changed = [], []
    for name, place, part, amount in zip(TONES, *parts, strict=True):
        places.append(place)
        changed.append(_in_levels(_OPERATIONS[name], part, amount) if name in _OPERATIONS else part)
    return tf.ensure_shape(tf.dynamic_stitch(places, changed), images.shape)


def _in_levels(operation: "_Operation", images: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """The operation for images in [−1, 1], rounded to whole grey levels."""
    return operation(tf.round((images + 1) * 127.5), amounts[:, None, None, None]) * (2 / 255) - 1


# All of them: float32 [N, H, W, 3] in whole grey levels, amounts [N, 1, 1, 1] → the same shape.
_Operation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def _brightness(levels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return _blend(tf.zeros_like(levels), levels, factor)


def _saturation(levels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return _blend(_luma(levels), levels, factor)


def _contrast(levels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    mean = tf.floor(tf.reduce_mean(_luma(levels), axis=(1, 2), keepdims=True) + 0.5)
    return _blend(mean, levels, factor)


def _sharpness(levels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """A blend with the image smoothed by 3×3 weights, 5 in the middle and 1 around it; its outermost pixels stay."""
    framed = tf.pad(levels, [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    rows = framed[:, :-2] + framed[:, 1:-1] + framed[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth = tf.floor((around + 4 * levels) / 13 + 0.5)
    height, width = levels.shape[1], levels.shape[2]
    row, column = tf.range(height)[:, None, None], tf.range(width)[None, :, None]
    is_inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return _blend(tf.where(is_inner, smooth, levels), levels, factor)


def _posterize(levels: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    step = tf.round(2 ** (8 - bits))  # a power need not be exact
    return tf.floor(levels / step) * step


def _solarize(levels: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    return tf.where(levels < threshold, levels, 255 - levels)


def _autocontrast(levels: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    low = tf.reduce_min(levels, axis=(1, 2), keepdims=True)
    span = tf.reduce_max(levels, axis=(1, 2), keepdims=True) - low
    return tf.where(span > 0, tf.floor((levels - low) * 255 / tf.maximum(span, 1)), levels)


def _equalize(levels: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    """Each channel by its own histogram. All counts are whole numbers below 2^24, so float32 is exact."""
    count, pixels = tf.shape(levels)[0], levels.shape[1] * levels.shape[2]
    channel = tf.reshape(tf.range(3 * count), (-1, 1, 1, 3)) * _LEVELS
    bins = channel + tf.cast(levels, tf.int32)
    histogram = tf.math.unsorted_segment_sum(tf.ones_like(levels), bins, 3 * _LEVELS * count)
    histogram = tf.reshape(histogram, (-1, _LEVELS))
    is_last = tf.cumsum(histogram, axis=1, reverse=True, exclusive=True) == 0
    last = tf.reduce_max(tf.where(is_last, histogram, 0), axis=1, keepdims=True)  # those after the last are 0
    step = tf.floor((pixels - last) / 255)
    before = tf.cumsum(histogram, axis=1, exclusive=True)
    mapped = tf.minimum(tf.floor((tf.floor(step / 2) + before) / tf.maximum(step, 1)), 255)
    table = tf.where(step > 0, mapped, tf.range(_LEVELS, dtype=tf.float32))
    return tf.gather(tf.reshape(table, [-1]), bins)


def _luma(levels: tf.Tensor) -> tf.Tensor:
    """[N, H, W, 1], whole grey levels."""
    weighted = sum(weight * levels[..., place, None] for place, weight in enumerate(_LUMA))
    return tf.floor((weighted + 32768) / 65536)


def _blend(other: tf.Tensor, levels: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return tf.floor(tf.clip_by_value(other + factor * (levels - other), 0, 255))


_OPERATIONS: dict[str, _Operation] = {
    "brightness": _brightness,
    "saturation": _saturation,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
