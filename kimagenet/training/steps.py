"""The two functions that run on the devices, on all replicas at once: a training step and an evaluation step."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kimagenet.models import l2_kernels
from kimagenet.training.mixing import MixSpec, draw, mix
from kimagenet.training.tones import apply_tones
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
    class_weights: np.ndarray | None = None,
    mixing: MixSpec | None = None,
    seed: int = 0,
    xla: bool = False,
) -> Step:
    """Makes the training step.

    loss = mean over the global batch of −Σ target·log p, plus λ·Σw² over `l2_kernels(model)`, plus the model's own
    losses. Targets are one-hot·(1 − s) + s/classes, before images and targets are mixed. Top-1 is the share of images
    whose most probable class is their own label, not the mixed-in one. Tones are applied before the mixing.

    Args:
        model: returns probabilities [B, C].
        optimizer: built for the model's trainable variables.
        strategy: the replicas.
        global_batch: images a step, over all replicas.
        weight_decay: λ.
        label_smoothing: s.
        class_weights: float32 [C]; None: all 1.
        mixing: how images are mixed; None: not at all.
        seed: of the mixing; its draws belong to (seed, global step, replica).
        xla: compile the step with XLA; for one device only.

    Returns:
        A step (images, labels, global step = 0, stop = 0, tones = None) → float32 [3]: loss, top-1, sum of `stop` over
        all replicas, which all learn in the same step that one of them wants to stop.

    Raises:
        UserError: XLA with several devices.
    """
    if xla and (replicas := strategy.num_replicas_in_sync) > 1:  # TensorFlow cannot add up their gradients there
        raise UserError(f"XLA works with one device, not with {replicas}", remedy="switch xla off", setting="xla")
    of_loss = (weight_decay, label_smoothing, class_weights, mixing)
    update = _make_update(model, optimizer, global_batch, strategy.num_replicas_in_sync, *of_loss)
    if xla:
        update = tf.function(update, jit_compile=True)

    def replica_step(
        images: tf.Tensor,
        labels: tf.Tensor,
        global_step: tf.Tensor | int = 0,
        stop: tf.Tensor | float = 0.0,
        tones: tf.Tensor | None = None,
    ) -> tf.Tensor:
        # Not in the code that XLA compiles: see `apply_tones` and `draw`.
        if tones is not None:
            images = apply_tones(to_input(images), tones)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        sums = update(images, labels, draw(tf.shape(images)[0], seed, global_step, replica))
        return tf.concat([sums, [stop]], axis=0)

    return _on_replicas(replica_step, strategy)


def _make_update(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    global_batch: int,
    replicas: int,
    weight_decay: float,
    label_smoothing: float,
    class_weights: np.ndarray | None,
    mixing: MixSpec | None,
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """The part of a training step that XLA may compile: (images, labels, draws) → loss, top-1 of one replica.

    With class weights the target of an image is multiplied by the weight of its class, before it is mixed: the loss of
    a mixed image is that of its two images, each with its own weight, by their shares. Keras takes the logarithm of the
    probabilities from the input of the softmax, so nothing underflows.
    """
    kernels = l2_kernels(model) if weight_decay > 0 else []
    variables = model.trainable_variables
    num_classes = model.output_shape[-1]
    entropy = keras.losses.categorical_crossentropy if class_weights is None else _weighted_entropy

    def update(images: tf.Tensor, labels: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        images = to_input(images)
        targets = tf.one_hot(labels, num_classes) * (1 - label_smoothing) + label_smoothing / num_classes
        if class_weights is not None:
            targets *= tf.gather(tf.constant(class_weights), labels)[:, None]
        if mixing is not None:
            images, targets = mix(images, targets, mixing, draws)
        with tf.GradientTape() as tape:
            probabilities = as_float32(model(images, training=True))
            entropies = entropy(targets, probabilities)
            penalty = tf.add_n([tf.reduce_sum(tf.square(kernel)) for kernel in kernels]) if kernels else 0.0
            # Optimizers add up the gradients of replicas: each gives its share of the mean and of the penalty.
            shared = weight_decay * penalty + sum(model.losses)
            loss = tf.reduce_sum(entropies) / global_batch + shared / replicas
            scaled = optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(scaled, variables), variables)
        return tf.stack([loss, tf.reduce_sum(_is_among_best(probabilities, labels, 1)) / global_batch])

    return update


def _weighted_entropy(targets: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """float32 [B]: −Σ target·log p for targets of any sum. The gradient of Keras' entropy is right for a sum of 1."""
    weights = tf.reduce_sum(targets, axis=1)
    shares = tf.math.divide_no_nan(targets, weights[:, None])
    return weights * keras.losses.categorical_crossentropy(shares, probabilities)


def make_evaluation_step(model: keras.Model, strategy: tf.distribute.Strategy) -> Step:
    """Makes the evaluation step. The cross-entropy is plain: no smoothing, no penalty.

    Args:
        model: returns probabilities [B, C].
        strategy: the replicas.

    Returns:
        A step (images, labels, weights) → float32 [4]: sums of weight × (cross-entropy, top-1 hit, top-5 hit, 1).
        Padding has weight 0.
    """

    def replica_step(images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        probabilities = as_float32(model(to_input(images), training=False))
        entropies = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
        top1, top5 = (_is_among_best(probabilities, labels, k) for k in (1, 5))
        columns = tf.stack([entropies, top1, top5, tf.ones_like(weights)])
        return tf.linalg.matvec(columns, weights)

    return _on_replicas(replica_step, strategy)


def to_input(images: tf.Tensor) -> tf.Tensor:
    """The input of models: float32 in [−1, 1]. uint8 images are scaled here, on the device, as x·2/255 − 1."""
    if images.dtype == tf.uint8:
        return tf.cast(images, tf.float32) * (2 / 255) - 1
    return tf.cast(images, tf.float32)


def as_float32(probabilities: tf.Tensor) -> tf.Tensor:
    """A model's output in float32; unchanged if it is float32 already."""
    # A cast, even to the same dtype, would hide the softmax from Keras' cross-entropy.
    return probabilities if probabilities.dtype == tf.float32 else tf.cast(probabilities, tf.float32)


def _is_among_best(probabilities: tf.Tensor, labels: tf.Tensor, k: int) -> tf.Tensor:
    """float32 [B], 1 where fewer than k classes rank before the label's.

    Of equally probable classes the lower number ranks first, so equal probabilities for all classes are not always a
    hit, and NaN never is (`tf.math.in_top_k` counts every tie as a hit).
    """
    labels = labels[:, None]
    own = tf.gather(probabilities, labels, batch_dims=1)
    classes = tf.range(tf.shape(probabilities)[1], dtype=labels.dtype)
    before = (probabilities > own) | ((probabilities == own) & (classes < labels))
    is_among = (tf.math.count_nonzero(before, axis=1) < k) & ~tf.math.is_nan(own[:, 0])
    return tf.cast(is_among, tf.float32)


def _on_replicas(replica_step: Callable[..., Any], strategy: tf.distribute.Strategy) -> Step:
    """Runs a step on every replica and adds up the results."""

    @tf.function
    def step(*batch: Any) -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(replica_step, args=batch), axis=None)

    return step
