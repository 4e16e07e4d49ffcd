"""Gradient accumulation: one update from the mean gradient of several micro-batches."""

from typing import Any

import keras
import tensorflow as tf

from kimagenet.optim.wrapper import Wrapper, each_replica


@keras.saving.register_keras_serializable(package="kimagenet")
class IterSize(Wrapper):
    """Applies the mean gradient of n = `iter_size` micro-batches: θ ← inner(θ, (g₁ + … + gₙ)/n), once every n calls.

    For a loss that is a mean over the batch, the result is that of the inner optimizer on a batch n times as large, up
    to rounding (Caffe's iter_size). Everything inside counts updates, not micro-batches: clipping, weight decay, EMA,
    schedule objects, Lookahead, `iterations`. BatchNormalization is not inside: its statistics are those of the small
    micro-batches.

    If n does not divide the steps of an epoch, the partial sum is carried over to the next epoch. At the end of a run a
    partial sum has not changed the weights; a checkpoint keeps it.

    Each replica has its own sum, and replicas communicate at the update only, so a micro-batch costs no communication.
    Memory: one copy of the weights; none for n = 1. A checkpoint has the total over all replicas, so a run can resume
    on another number of replicas. For that reason reading `variables` under MultiWorkerMirroredStrategy is a collective
    operation: every worker has to do it, even if only the chief writes.

    Loss scaling outside skips a micro-batch that overflows, and the update comes after n good ones. Loss scaling inside
    skips the whole update, and the sums start again at 0.

    Args:
        inner_optimizer: the optimizer that gets the mean gradient.
        iter_size: n, at least 1.
        name: of this optimizer.

    Raises:
        ValueError: `iter_size` is wrong.
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
        """A variable with a separate value on each replica; outside of replicas its value is their sum."""
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
        """The number of micro-batches since the last update, 0 … iter_size − 1."""
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
