"""Trains all layers of a network from a later epoch on."""

from collections.abc import Callable
from typing import Any

import keras

from kimagenet.networks.freezing import train_all
from kimagenet.training.loop import Loop


class Unfreezing(keras.callbacks.Callback):
    """Trains the frozen layers, too, from an epoch on.

    From there on the run is what a new run would be that starts from the model so far: the model gets the weights that
    are evaluated (slow or averaged ones), and the optimizer is a new one. Its state of the first weights is not kept:
    an optimizer has one step count for all weights, and Adam's first steps with a late count are several times too
    long.

    Args:
        loop: the loop. Some of its layers are frozen.
        epoch: how many epochs are trained before.
        make_optimizer: makes the optimizer; called in the strategy's scope.
        say: gets a line when it happens.
    """

    needs_every_loss = False

    def __init__(
        self,
        loop: Loop,
        epoch: int,
        make_optimizer: Callable[[], keras.optimizers.Optimizer],
        say: Callable[[str], None] = print,
    ) -> None:
        super().__init__()
        self._loop = loop
        self._epoch = epoch
        self._make_optimizer = make_optimizer
        self._say = say
        self._is_done = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch >= self._epoch and not self._is_done:
            self.unfreeze()
            self._say(f"epoch {epoch + 1}: all layers are trained from here on, with a new optimizer")

    def unfreeze(self) -> None:
        """Does it now."""
        self._is_done = True
        model = self._loop.model
        model.optimizer.finalize_variable_values(model.trainable_variables)
        train_all(model)
        with self._loop.training.strategy.scope():
            self._loop.use_optimizer(self._make_optimizer())
