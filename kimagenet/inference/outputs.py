"""The outputs of a model for a batch: the most probable classes of each image, and its cross-entropy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kimagenet.training.steps import as_float32, to_input


class Outputs(NamedTuple):
    """The outputs for N images.

    Attributes:
        classes: int32 [N, k], the most probable class first; of equally probable ones the lower number first.
        probabilities: float32 [N, k], of these classes.
        losses: float32 [N], cross-entropies.
        labels: int32 [N], the model's numbers of the correct classes.
        weights: float32 [N], 0 for padding.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def make_output_step(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    k: int = 5,
    numbers: np.ndarray | None = None,
    *,
    flip: bool = False,
) -> Callable[..., Outputs]:
    """Makes the step that computes outputs.

    Args:
        model: returns probabilities [N, classes].
        strategy: the replicas.
        k: how many classes of each image.
        numbers: int32 [classes], the model's number of each label; None: labels are the model's numbers.
        flip: whether probabilities are the means of those of an image and of its mirror image.

    Returns:
        A step (images, labels, weights) → `Outputs` of all replicas, in the order of the global batch.
    """
    k = min(k, model.output_shape[-1])

    def replica_step(images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, ...]:
        images = to_input(images)
        probabilities = as_float32(model(images, training=False))
        if flip:
            mirrored = as_float32(model(tf.reverse(images, [2]), training=False))
            probabilities = (probabilities + mirrored) / 2
        if numbers is not None:
            labels = tf.gather(tf.constant(numbers), labels)
        losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
        best, classes = tf.math.top_k(probabilities, k)
        return classes, best, losses, labels, weights

    @tf.function(reduce_retracing=True)
    def step(*batch: Any) -> tuple[Any, ...]:
        return tuple(strategy.gather(part, axis=0) for part in strategy.run(replica_step, args=batch))

    return lambda *batch: Outputs(*(part.numpy() for part in step(*batch)))
