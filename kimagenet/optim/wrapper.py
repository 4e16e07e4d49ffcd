"""What all wrapper optimizers share: delegation, serialization, and the change to the cross-replica context."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from kimagenet.backend import TENSORFLOW
from pipelines.errors import UserError


class Wrapper(keras.optimizers.Optimizer, ABC):
    """A Keras optimizer around another one, which has the learning rate and updates the weights.

    Subclasses create their variables in `_build_own`, and do their work in `_update`, around `_inner_apply`.
    `variables` has the wrapper's own variables, then the inner ones, so checkpoints and .keras files have all of them.

    Raises:
        UserError: Keras does not use TensorFlow.

    Attributes:
        inner_optimizer: the other optimizer.
    """

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, name: str | None = None) -> None:
        if (backend := keras.config.backend()) != TENSORFLOW:
            what = f"{type(self).__name__} works on Keras' TensorFlow backend, not on {backend}"
            raise UserError(what, remedy="use Keras' own optimizers there")
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the variables of the inner optimizer, then its own. Weights that are loaded later still count."""
        if self.built:
            return
        variables = list(variables)
        self.inner_optimizer.build(variables)
        super().build(variables)
        self._build_own(variables)

    def _build_own(self, variables: list[Any]) -> None:
        """Creates the wrapper's own variables."""

    @property
    def variables(self) -> list[Any]:
        """The wrapper's own variables, then those of the inner optimizer."""
        return self._variables + self.inner_optimizer.variables

    @property
    def learning_rate(self) -> Any:
        """The inner optimizer's learning rate; it can be assigned."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        """The number of updates of the weights, without micro-steps and steps that loss scaling skipped."""
        return self.inner_optimizer.iterations

    def scale_loss(self, loss: Any) -> Any:
        return self.inner_optimizer.scale_loss(loss)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        self.inner_optimizer.exclude_from_weight_decay(var_list=var_list, var_names=var_names)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        self.inner_optimizer.finalize_variable_values(var_list)

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Does one step. Call it in a replica context.

        Args:
            grads: the gradients of this replica; Keras adds up those of all replicas.
            trainable_variables: of the same length; None: those that the optimizer was built with.

        Raises:
            ValueError: it is called outside of a replica context, or without variables before `build`.
        """
        if tf.distribute.in_cross_replica_context():
            raise ValueError(f"{type(self).__name__}.apply must be called in a replica context: use strategy.run")
        if trainable_variables is None:
            if not self.built:
                raise ValueError("apply without variables needs an optimizer that is built: call optimizer.build first")
            trainable_variables = self._trainable_variables
        trainable_variables = list(trainable_variables)
        self.build(trainable_variables)
        self._check_variables_are_known(trainable_variables)

        def update(strategy: tf.distribute.Strategy, grads: list[Any]) -> None:
            self._update(strategy, grads, trainable_variables)

        # A cond whose branch updates mirrored variables has to be in the cross-replica context: merge_call enters it.
        if tf.__internal__.distribute.strategy_supports_no_merge_call():
            update(tf.distribute.get_strategy(), list(grads))
        else:
            tf.distribute.get_replica_context().merge_call(update, args=(list(grads),))

    def stateless_apply(self, *_: Any, **__: Any) -> Any:
        """Not supported: this is Keras' way for JAX, and its version would change TensorFlow's variables."""
        raise ValueError(f"{type(self).__name__}.apply must be called, not stateless_apply")

    @abstractmethod
    def _update(self, strategy: tf.distribute.Strategy, grads: list[Any], variables: list[Any]) -> None:
        """One step in the cross-replica context, or on the only replica.

        Args:
            strategy: of the training.
            grads: for each variable its gradient on each replica, or None.
            variables: the trainable variables.
        """

    def _inner_apply(self, strategy: tf.distribute.Strategy, grads: list[Any], variables: list[Any]) -> None:
        each_replica(strategy, lambda grads: self.inner_optimizer.apply(grads, variables), grads)

    def get_config(self) -> dict[str, Any]:
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        return {"name": self.name, "inner_optimizer": inner}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Wrapper":
        config = dict(config)
        inner = keras.saving.deserialize_keras_object(config.pop("inner_optimizer"), custom_objects=custom_objects)
        return cls(inner, **config)


def each_replica(strategy: tf.distribute.Strategy, function: Callable[[list[Any]], None], grads: list[Any]) -> None:
    """Calls `function` with the gradients of each replica, from the cross-replica or a replica context."""
    if tf.distribute.in_cross_replica_context():
        strategy.extended.call_for_each_replica(function, args=(grads,))
    else:
        function(grads)


def when(condition: Any, action: Callable[[], None]) -> None:
    """Runs `action` if the scalar bool tensor `condition` is true, also in a graph."""

    def nothing() -> None:
        return None

    tf.cond(condition, action, nothing)


def chain(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """The optimizer, the one inside it, and so on to the innermost one."""
    found = [optimizer]
    while hasattr(found[-1], "inner_optimizer"):
        found.append(found[-1].inner_optimizer)
    return found
