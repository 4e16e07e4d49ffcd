"""The weights that a model is evaluated with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from kimagenet.optim.lookahead import Lookahead
from kimagenet.optim.wrapper import chain


@contextmanager
def evaluation_weights(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[Any], ema: bool = False
) -> Iterator[None]:
    """While it lasts, the model's trainable `variables` hold what is evaluated and exported; then the run goes on.

    That is Lookahead's slow weights if there is one, else the weights as they are; with `ema` it is the moving average,
    for which the innermost optimizer must have `use_ema` (`ValueError`). To be called outside of `strategy.run`.
    """
    layers = chain(optimizer)
    if ema and not layers[-1].use_ema:
        raise ValueError("this optimizer keeps no moving average of the weights")
    before = [variable.numpy() for variable in variables]
    if ema:
        layers[-1].finalize_variable_values(variables)
    else:
        for layer in layers:
            if isinstance(layer, Lookahead):
                layer.use_slow_weights(variables)
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
