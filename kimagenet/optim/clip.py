"""Gradient clipping by the global norm of the whole batch's gradient."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from kimagenet.optim.wrapper import Wrapper


@keras.saving.register_keras_serializable(package="kimagenet")
class ClipGlobalNorm(Wrapper):
    """Scales the gradient g by min(1, c/‖g‖), c = `clip_norm`, ‖g‖ over all weights together (arXiv 1211.5063).

    Under a strategy g is the sum over all replicas, that is, the gradient of the global batch. (Keras' own
    `global_clipnorm` clips the part of each replica before the sum.) This costs one more all-reduce of the gradients,
    and nothing on one replica. Inside `IterSize` it clips the mean of the micro-batches. An infinite or NaN norm gives
    NaN gradients, as in Keras.

    Args:
        inner_optimizer: the optimizer that gets the clipped gradients. No `LossScaleOptimizer`: put that outside.
        clip_norm: c, > 0.
        name: of this optimizer.

    Raises:
        ValueError: an argument is wrong.
    """

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, clip_norm: float, name: str | None = None) -> None:
        super().__init__(inner_optimizer, name=name)
        if not clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, not {clip_norm!r}")
        if isinstance(inner_optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError("ClipGlobalNorm would clip scaled gradients: put the LossScaleOptimizer outside of it")
        self.clip_norm = float(clip_norm)

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        grads = list(grads)  # an iterator would be empty below
        given = [g for g in grads if g is not None]
        total = given
        if tf.distribute.get_strategy().num_replicas_in_sync > 1 and given:
            total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, given)
        norm = tf.linalg.global_norm(total)
        # Each replica scales its own part by the same factor: the inner optimizer adds the parts up.
        scale = self.clip_norm / tf.maximum(norm, self.clip_norm)
        super().apply([None if g is None else g * tf.cast(scale, g.dtype) for g in grads], trainable_variables)

    def _update(self, strategy: tf.distribute.Strategy, grads: list[Any], variables: list[Any]) -> None:
        self._inner_apply(strategy, grads, variables)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"clip_norm": self.clip_norm}
