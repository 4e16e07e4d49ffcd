"""The weights for evaluation."""

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
    """Puts the weights for evaluation and export into the model; at the end the training weights come back.

    These are the slow weights of Lookahead if there is one, else the weights as they are. Call it outside of
    `strategy.run`.

    Args:
        optimizer: of the training.
        variables: the trainable variables of the model.
        ema: whether to take the moving average of the innermost optimizer instead.

    Raises:
        ValueError: `ema` is asked for, and the innermost optimizer has no `use_ema`.
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
