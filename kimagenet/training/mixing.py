"""Augmentation of a whole batch on the training device: mixup, CutMix and random erasing, the same for every loader.

Pure functions. Draws belong to (run's seed, global step, replica), so a resumed run draws the same. Everything after
the draws is arithmetic on fixed shapes, which XLA can compile.
"""

import math
from dataclasses import dataclass

import tensorflow as tf

from kimagenet.recipe import Recipe
from pipelines.errors import UserError
from pipelines.ranges import range_of

ERASED_AREA = (0.02, 1 / 3)  # share of the image
ERASED_ASPECT = (0.3, 1 / 0.3)  # height / width, log-uniform

# Each augmentation reads fixed columns, so switching one off does not change the draws of the others.
_KIND, _RADIUS, _ANGLE, _CUT_Y, _CUT_X, _HIT, _AREA, _ASPECT, _ERASE_Y, _ERASE_X = range(10)


@dataclass(frozen=True)
class MixSpec:
    """How a batch is mixed; by default not at all.

    Attributes:
        mixup: α of λ ~ Beta(α, α) (arXiv 1710.09412); 0 = none.
        cutmix: α of λ ~ Beta(α, α) (arXiv 1905.04899); 0 = none. With both, each image draws one of the two.
        erase: probability that a rectangle of an image is erased (arXiv 1708.04896).

    Raises:
        UserError: a value is out of range.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix", "erase"):
            value = getattr(self, name)
            if problem := range_of(Recipe, name).problem(value):
                raise UserError(f"{name} {problem}, not {value}", setting=name)

    @classmethod
    def of(cls, recipe: Recipe) -> "MixSpec":
        """The mixing of a recipe."""
        return cls(recipe.mixup, recipe.cutmix, recipe.erase)


def draw(batch_size: tf.Tensor | int, run_seed: int, global_step: tf.Tensor | int, replica: int) -> tf.Tensor:
    """Draws the random numbers of one batch on one replica.

    XLA must not compile it: its generators give other numbers than TensorFlow's for the same seed.

    Args:
        batch_size: images on this replica, B.
        run_seed: the seed of the run.
        global_step: steps done before this one.
        replica: number of the replica.

    Returns:
        float32 [B, 10], uniform in [0, 1), a row for each image.
    """
    seed = tf.stack([tf.constant(run_seed, tf.int64), tf.cast(global_step, tf.int64)])
    seed = tf.random.fold_in(seed, tf.cast(replica, tf.int64), alg="philox")
    return tf.random.stateless_uniform((batch_size, 10), seed, alg="philox")


def mix(images: tf.Tensor, targets: tf.Tensor, spec: MixSpec, uniform: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Erases and mixes a batch. Each image is mixed with the one before it in the batch, whose order is random.

    Args:
        images: float32 [B, H, W, 3] in [−1, 1].
        targets: float32 [B, C].
        spec: what to do.
        uniform: from `draw`.

    Returns:
        Images and targets of the same shapes.
    """
    height, width = images.shape[1], images.shape[2]
    if spec.erase:
        images = images * (1 - _erased(uniform, spec.erase, height, width))  # 0 is grey, the middle of the range
    if spec.mixup or spec.cutmix:
        images, targets = blend(images, targets, _own_weights(uniform, spec, height, width))
    return images, targets


def blend(images: tf.Tensor, targets: tf.Tensor, own: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Blends each image with the one before it: w·x + (1 − w)·x_before per pixel, targets with the mean of w.

    Args:
        images: float32 [B, H, W, 3].
        targets: float32 [B, C].
        own: w, float32 [B, H, W, 1] or a shape that broadcasts to it.

    Returns:
        Images and targets of the same shapes.
    """
    share = tf.reduce_mean(own, axis=(1, 2))
    return (
        own * images + (1 - own) * tf.roll(images, 1, axis=0),
        share * targets + (1 - share) * tf.roll(targets, 1, axis=0),
    )


def symmetric_beta(radius: tf.Tensor, angle: tf.Tensor, alpha: float) -> tf.Tensor:
    """Draws from Beta(α, α) without rejection, for any α > 0.

    Bailey's polar method gives Student's t with 2α degrees of freedom (Math. Comp. 62, 1994), and
    (1 + t/√(2α + t²))/2 is Beta(α, α). The form used here does not overflow for small α.

    Args:
        radius: uniform in [0, 1).
        angle: uniform in [0, 1), of the same shape.
        alpha: α.

    Returns:
        float32 of the same shape, in [0, 1].
    """
    u = radius ** (1 / alpha)
    cosine = tf.cos(2 * math.pi * angle)
    ratio = cosine * tf.sqrt((1 - u) / (u + (1 - u) * cosine**2 + 1e-30))
    return (1 + tf.clip_by_value(ratio, -1, 1)) / 2  # rounding


def _own_weights(uniform: tf.Tensor, spec: MixSpec, height: int, width: int) -> tf.Tensor:
    """The weight of an image in its mixture, [B, H, W, 1]: λ everywhere, or 0 in a rectangle and 1 outside."""
    # 1 for images that CutMix mixes, 0 for mixup.
    cuts = tf.cast(uniform[:, _KIND] < 0.5, tf.float32) if spec.mixup and spec.cutmix else float(spec.cutmix > 0)
    share, pasted = 1.0, 0.0
    if spec.mixup:
        share = symmetric_beta(uniform[:, _RADIUS], uniform[:, _ANGLE], spec.mixup)[:, None, None, None]
    if spec.cutmix:
        pasted = _cut(uniform, spec.cutmix, height, width)
    cuts = tf.reshape(cuts, (-1, 1, 1, 1))
    return cuts * (1 - pasted) + (1 - cuts) * share * tf.ones((1, height, width, 1))


def _cut(uniform: tf.Tensor, alpha: float, height: int, width: int) -> tf.Tensor:
    """1 in CutMix's rectangle: √(1 − λ) of each side, its centre anywhere; parts outside the image are lost."""
    side = tf.sqrt(1 - symmetric_beta(uniform[:, _RADIUS], uniform[:, _ANGLE], alpha))

    def span(centre: tf.Tensor, length: int) -> tuple[tf.Tensor, tf.Tensor]:
        start = tf.round((centre - side / 2) * length)
        return start, start + tf.round(side * length)

    return _rectangle(span(uniform[:, _CUT_Y], height), span(uniform[:, _CUT_X], width), height, width)


def _erased(uniform: tf.Tensor, probability: float, height: int, width: int) -> tf.Tensor:
    """1 in the erased rectangle. A side longer than the image's is cut to it, not drawn again as in the paper."""
    low, high = ERASED_AREA
    area = (low + (high - low) * uniform[:, _AREA]) * height * width
    first, last = (math.log(aspect) for aspect in ERASED_ASPECT)
    aspect = tf.exp(first + (last - first) * uniform[:, _ASPECT])

    def span(place: tf.Tensor, side: tf.Tensor, length: int) -> tuple[tf.Tensor, tf.Tensor]:
        side = tf.minimum(tf.round(side), length)
        start = tf.floor(place * (length - side + 1))
        return start, start + side

    rows = span(uniform[:, _ERASE_Y], tf.sqrt(area * aspect), height)
    columns = span(uniform[:, _ERASE_X], tf.sqrt(area / aspect), width)
    hit = tf.cast(uniform[:, _HIT] < probability, tf.float32)[:, None, None, None]
    return hit * _rectangle(rows, columns, height, width)


def _rectangle(
    rows: tuple[tf.Tensor, tf.Tensor], columns: tuple[tf.Tensor, tf.Tensor], height: int, width: int
) -> tf.Tensor:
    """float32 [B, H, W, 1], 1 where both coordinates are in their [start, end), each [B]."""

    def inside(span: tuple[tf.Tensor, tf.Tensor], length: int) -> tf.Tensor:
        at = tf.range(length, dtype=tf.float32)
        return tf.cast((at >= span[0][:, None]) & (at < span[1][:, None]), tf.float32)

    return inside(rows, height)[:, :, None, None] * inside(columns, width)[:, None, :, None]
