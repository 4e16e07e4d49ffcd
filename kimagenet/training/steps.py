"""The two functions that run on the device: one training step, one evaluation step. Each over all replicas at once."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kimagenet.models import l2_kernels
from kimagenet.training.mixing import MixSpec, draw, mix
from pipelines.errors import UserError

Step = Callable[..., tf.Tensor]


def make_training_step(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    strategy: tf.distribute.Strategy,
    global_batch: int,
    *,
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
    mixing: MixSpec | None = None,
    seed: int = 0,
    xla: bool = False,
) -> Step:
    """A step (images, labels, global step = 0, stop = 0) → float32 [3]: loss, top-1, the sum of all replicas' `stop`.

    loss = mean over the global batch of −Σ target·log p, plus λ·Σw² over `l2_kernels(model)` with λ = `weight_decay`,
    plus the model's own losses. target = one-hot·(1 − s) + s/classes, s = `label_smoothing`; then images and targets
    are mixed as `mixing` says, by draws that belong to (`seed`, global step, replica). Top-1 is the share of images
    whose most probable class is their own label, not what was mixed in. p are the model's probabilities: Keras takes
    the logarithm from the softmax's input, so nothing underflows. Each replica hands in a `stop`, so that all of them
    learn in the same step that one wants to.
    """
    replicas = strategy.num_replicas_in_sync
    if xla and replicas > 1:  # TensorFlow cannot add up gradients of several devices inside of what XLA compiles
        raise UserError(f"xla works with one device, not with {replicas}: leave --xla out")
    kernels = l2_kernels(model) if weight_decay > 0 else []
    variables = model.trainable_variables
    num_classes = model.output_shape[-1]

    def update(images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        images = to_input(images)
        targets = tf.one_hot(labels, num_classes) * (1 - label_smoothing) + label_smoothing / num_classes
        if mixing is not None:
            images, targets = mix(images, targets, mixing, draws)
        with tf.GradientTape() as tape:
            probabilities = as_float32(model(images, training=True))
            entropies = keras.losses.categorical_crossentropy(targets, probabilities)
            penalty = tf.add_n([tf.reduce_sum(tf.square(kernel)) for kernel in kernels]) if kernels else 0.0
            # Optimizers sum the replicas' gradients: each replica gives its share of the mean, and of the penalty.
            shared = weight_decay * penalty + sum(model.losses)
            loss = tf.reduce_sum(entropies) / global_batch + shared / replicas
            scaled = optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(scaled, variables), variables)
        return tf.stack([loss, tf.reduce_sum(_is_among_best(probabilities, labels, 1)) / global_batch])

    if xla:
        update = tf.function(update, jit_compile=True)

    def replica_step(
        images: tf.Tensor, labels: tf.Tensor, global_step: tf.Tensor | int = 0, stop: tf.Tensor | float = 0.0
    ) -> tf.Tensor:
        # Outside of what XLA compiles: see `draw`.
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        sums = update(images, labels, draw(tf.shape(images)[0], seed, global_step, replica))
        return tf.concat([sums, [stop]], axis=0)

    return _on_replicas(replica_step, strategy)


def make_evaluation_step(model: keras.Model, strategy: tf.distribute.Strategy) -> Step:
    """A step (images, labels, weights) → float32 [4]: sums of weight × (cross-entropy, top-1 hit, top-5 hit, 1).

    Padding has weight 0 and counts for nothing. The cross-entropy is plain: no smoothing, no penalty.
    """

    def replica_step(images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        probabilities = as_float32(model(to_input(images), training=False))
        entropies = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
        top1, top5 = (_is_among_best(probabilities, labels, k) for k in (1, 5))
        columns = tf.stack([entropies, top1, top5, tf.ones_like(weights)])
        return tf.linalg.matvec(columns, weights)

    return _on_replicas(replica_step, strategy)


def to_input(images: tf.Tensor) -> tf.Tensor:
    """What models take: float32 in [−1, 1]; uint8 images are scaled here, on the device, as x·2/255 − 1."""
    if images.dtype == tf.uint8:
        return tf.cast(images, tf.float32) * (2 / 255) - 1
    return tf.cast(images, tf.float32)


def as_float32(probabilities: tf.Tensor) -> tf.Tensor:
    """A model's output in float32; untouched if it is that already."""
    # A cast, even to the same type, would hide the softmax from Keras' cross-entropy.
    return probabilities if probabilities.dtype == tf.float32 else tf.cast(probabilities, tf.float32)


def _is_among_best(probabilities: tf.Tensor, labels: tf.Tensor, k: int) -> tf.Tensor:
    """float32 [B], 1 where fewer than k classes stand before the label's.

    Of equal classes the lower number stands first, so a model that says the same of all classes does not win, and a
    NaN is never right (`tf.math.in_top_k` counts every tie as a hit).
    """
    labels = labels[:, None]
    own = tf.gather(probabilities, labels, batch_dims=1)
    classes = tf.range(tf.shape(probabilities)[1], dtype=labels.dtype)
    before = (probabilities > own) | ((probabilities == own) & (classes < labels))
    is_among = (tf.math.count_nonzero(before, axis=1) < k) & ~tf.math.is_nan(own[:, 0])
    return tf.cast(is_among, tf.float32)


def _on_replicas(replica_step: Callable[..., Any], strategy: tf.distribute.Strategy) -> Step:
    """Runs a step on every replica and adds up what they return."""

    @tf.function
    def step(*batch: Any) -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(replica_step, args=batch), axis=None)

    return step
