"""LookAhead: k steps forward, one step back (Zhang, Lucas, Hinton, Ba: arXiv 1907.08610)."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from kimagenet.optim.wrapper import Wrapper, chain, when

# Optimizers whose whole state starts at zero, so setting it to zero resets them.
RESETTABLE = ("Adam", "AdamW", "Lamb", "Lion", "RMSprop", "SGD")


@keras.saving.register_keras_serializable(package="kimagenet")
class Lookahead(Wrapper):
    """Slow weights φ follow the fast weights θ of the inner optimizer.

    At first φ₀ = θ₀, the weights at the first update, so weights loaded after `build` count. After every k =
    `sync_period` updates φ ← φ + α·(θ − φ), then θ ← φ, with α = `slow_step_size`. α = 1 is the inner optimizer alone;
    α = 0 never moves φ.

    The model's weights are θ. Evaluate with φ: `finalize_variable_values`, which `fit` calls at its end, puts φ into
    the model, also between two synchronizations. `kimagenet.optim.evaluation_weights` does the same for a while. (A
    second `fit` starts from φ, so it loses the fast updates since the last synchronization.)

    Lookahead counts updates, not calls: Lookahead(IterSize(x)) and IterSize(Lookahead(x)) are the same algorithm, and a
    step that a `LossScaleOptimizer` inside or outside skips does not count. Memory: one copy of the weights.

    If the inner optimizer has `use_ema`, the average is over fast weights, and `finalize_variable_values` ends with
    that average, as Keras defines it. Loss scaling belongs outside, where `model.compile` puts it; a
    `LossScaleOptimizer` inside needs `compile(auto_scale_loss=False)`.

    Args:
        inner_optimizer: updates the fast weights.
        sync_period: k, at least 1.
        slow_step_size: α, in [0, 1].
        inner_state: what happens to the state of the inner optimizer at a synchronization. "maintain": nothing;
            "reset": momenta and step count become zero, and the learning rate stays. `iterations` counts all updates in
            both cases.
        name: of this optimizer.

    Raises:
        ValueError: an argument is wrong.

    Example:
        optimizer = Lookahead(keras.optimizers.Adam(1e-2), sync_period=5, slow_step_size=0.5)
        model.compile(optimizer, "sparse_categorical_crossentropy")

    References:
        Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019, arXiv 1907.08610.
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        sync_period: int = 5,
        slow_step_size: float = 0.5,
        inner_state: str = "maintain",
        name: str | None = None,
    ) -> None:
        super().__init__(inner_optimizer, name=name)
        if not (isinstance(sync_period, int) and sync_period >= 1):
            raise ValueError(f"sync_period must be an integer of at least 1, not {sync_period!r}")
        if not 0 <= slow_step_size <= 1:
            raise ValueError(f"slow_step_size must be in [0, 1], not {slow_step_size!r}")
        if inner_state not in ("maintain", "reset"):
            raise ValueError(f'inner_state is "maintain" or "reset", not {inner_state!r}')
        if inner_state == "reset":
            _check_resettable(chain(inner_optimizer)[-1])
        self.sync_period = sync_period
        self.slow_step_size = float(slow_step_size)
        self.inner_state = inner_state

    def _build_own(self, variables: list[Any]) -> None:
        self._slow = self.add_optimizer_variables(variables, "slow")

    @property
    def iterations(self) -> Any:
        """The number of updates of the fast weights; a reset of the inner state does not change it."""
        return self._iterations

    def _update(self, strategy: tf.distribute.Strategy, grads: list[Any], variables: list[Any]) -> None:
        when(tf.equal(self._iterations.value, 0), lambda: self._update_weights(strategy, _start))
        # `+ 0` makes a copy: the variable itself would be read after the inner step.
        before = self.inner_optimizer.iterations + 0
        self._inner_apply(strategy, grads, variables)
        updated = tf.not_equal(self.inner_optimizer.iterations + 0, before)
        self._iterations.assign_add(tf.cast(updated, self._iterations.dtype))
        due = tf.equal(self._iterations.value % self.sync_period, 0)
        when(tf.logical_and(updated, due), lambda: self._synchronize(strategy))

    def _synchronize(self, strategy: tf.distribute.Strategy) -> None:
        def step(fast: tf.Variable, slow: tf.Variable) -> None:
            # φ ← (1 − α)·φ, then φ ← φ + α·θ in one pass without a temporary: the only cost is memory traffic.
            share = tf.cast(self.slow_step_size, fast.dtype)
            slow.assign((1 - share) * slow)
            tf.raw_ops.ResourceApplyGradientDescent(var=slow.handle, alpha=-share, delta=fast)
            fast.assign(slow)

        self._update_weights(strategy, step)
        if self.inner_state == "reset":
            innermost = chain(self)[-1]
            for variable in innermost.variables:
                if variable is not innermost.learning_rate:
                    strategy.extended.update(variable.value, lambda v: v.assign(tf.zeros_like(v)), group=False)

    def _update_weights(self, strategy: tf.distribute.Strategy, function: Any) -> None:
        """Calls `function(fast, slow)` for each weight on each device."""
        for fast, slow in zip(self._trainable_variables, self._slow, strict=True):
            strategy.extended.update(_native(fast), function, args=(slow.value,), group=False)

    def use_slow_weights(self, var_list: Sequence[Any]) -> None:
        """Puts the slow weights into the model's variables `var_list`; before the first update there are none."""
        if int(self._iterations.numpy()):
            for variable in var_list:
                variable.assign(self._slow[self._get_variable_index(variable)].value)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Puts the slow weights, or the EMA of the inner optimizer if it has one, into the model's variables."""
        self.use_slow_weights(var_list)
        super().finalize_variable_values(var_list)

    def get_config(self) -> dict[str, Any]:
        own = ("sync_period", "slow_step_size", "inner_state")
        return super().get_config() | {name: getattr(self, name) for name in own}


def _start(fast: tf.Variable, slow: tf.Variable) -> None:
    slow.assign(fast)


def _native(variable: Any) -> tf.Variable:
    """The tf.Variable of a Keras variable, possibly a distributed one."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def _check_resettable(optimizer: keras.optimizers.Optimizer) -> None:
    if type(optimizer).__name__ not in RESETTABLE:
        raise ValueError(f'inner_state="reset" works with {", ".join(RESETTABLE)}, not {type(optimizer).__name__}')
    if optimizer.use_ema or not isinstance(optimizer.get_config()["learning_rate"], float):
        raise ValueError('inner_state="reset" would restart the EMA or the schedule object of the inner optimizer')
