"""iter_size: one update from the mean gradient of several micro-batches."""

from typing import Any

import keras
import tensorflow as tf

from kimagenet.optim.wrapper import Wrapper, each_replica


@keras.saving.register_keras_serializable(package="kimagenet")
class IterSize(Wrapper):
    """Applies the mean gradient of `iter_size` = n micro-batches: θ ← inner(θ, (g₁ + … + gₙ)/n), once every n calls.

    It equals the inner optimizer on a batch n times as large, up to rounding, for a loss that is a mean over the batch
    (gradient accumulation; Caffe's iter_size). Whatever is inside counts updates, not micro-batches: clipping,
    weight decay, EMA, schedule objects, Lookahead, `iterations`. BatchNormalization is outside: it normalizes with and
    averages over micro-batches, so it sees the small batch.

    An epoch whose steps n does not divide carries its partial sum over into the next one. `pending` says how many
    micro-batches wait; at the end of a run they have not moved the weights, and a checkpoint keeps them.

    Each replica keeps its own sum and replicas meet only at the update, so a micro-batch costs no communication.
    Memory: one copy of the weights, none for n = 1. In a checkpoint the sums of all replicas stand added up, so a run
    may resume on another number of them; under MultiWorkerMirroredStrategy reading `variables` is for that reason a
    collective operation: every worker has to do it, even if only the chief writes.

    Loss scaling outside skips a micro-batch that overflows and goes on collecting until n good ones are there; inside
    it skips the whole update, and the sums start anew. Raises `ValueError` on a bad `iter_size`.
    """

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, iter_size: int, name: str | None = None) -> None:
        super().__init__(inner_optimizer, name=name)
        if not (isinstance(iter_size, int) and iter_size >= 1):
            raise ValueError(f"iter_size must be an integer of at least 1, not {iter_size!r}")
        self.iter_size = iter_size

    def _build_own(self, variables: list[Any]) -> None:
        self._sums = []
        if self.iter_size > 1:
            with keras.name_scope(self.name, caller=self):
                self._sums = [self._replica_local(v, f"gradient_sum_{i}") for i, v in enumerate(variables)]

    def _replica_local(self, variable: Any, name: str) -> keras.Variable:
        """A variable with a value of its own on each replica; read from outside it is their sum."""
        local = keras.Variable(
            keras.initializers.Zeros(),
            shape=variable.shape,
            dtype=variable.dtype,
            trainable=False,
            synchronization="on_read",
            aggregation="sum",
            name=name,
        )
        self._track_variable(local)
        return local

    @property
    def pending(self) -> int:
        """Micro-batches that were collected since the last update, 0 … iter_size − 1."""
        return int(self._iterations.numpy()) % self.iter_size

    def _update(self, strategy: tf.distribute.Strategy, grads: list[Any], variables: list[Any]) -> None:
        if self.iter_size == 1:
            self._inner_apply(strategy, grads, variables)
            return
        sums = [self._sums[self._get_variable_index(v)].value for v in variables]

        def collect(grads: list[Any]) -> None:
            for total, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    total.assign_add(tf.cast(tf.convert_to_tensor(grad), total.dtype))

        def update(grads: list[Any]) -> None:
            collect(grads)
            mean = [None if g is None else t / self.iter_size for t, g in zip(sums, grads, strict=True)]
            self.inner_optimizer.apply(mean, variables)
            for total in sums:
                total.assign(tf.zeros_like(total))

        last = tf.equal((self._iterations.value + 1) % self.iter_size, 0)
        tf.cond(last, lambda: each_replica(strategy, update, grads), lambda: each_replica(strategy, collect, grads))
        self._iterations.assign_add(1)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"iter_size": self.iter_size}
