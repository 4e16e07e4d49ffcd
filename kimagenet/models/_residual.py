"""Residual branches that begin at zero."""

from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError

if TYPE_CHECKING:
    import keras


def zero_last_gammas(model: "keras.Model") -> tuple[str, ...]:
    """Sets gamma of the last BatchNormalization of each residual branch to 0, so that a block begins as its shortcut.

    Goyal et al., arXiv 1706.02677, section 5.1. A branch is what an Add of two inputs adds to a shorter path.

    Args:
        model: a new one.

    Returns:
        The names of these layers.

    Raises:
        UserError: the model has no such branch.
    """
    from keras import layers

    found = []
    for layer in model.layers:
        if isinstance(layer, layers.Add) and len(layer.input) == 2:
            longer = max((_producer(tensor) for tensor in layer.input), key=_convolutions_before)
            while isinstance(longer, layers.Dropout):
                longer = _producer(longer.input)
            if isinstance(longer, layers.BatchNormalization):
                found.append(longer)
    if not found:
        raise UserError(f"{model.name} has no residual branch that ends with a normalization", setting="zero_gamma")
    for norm in found:
        norm.gamma.assign(norm.gamma * 0)
    return tuple(norm.name for norm in found)


def _producer(tensor: Any) -> Any:
    """The layer that a tensor of a model's graph comes from."""
    return tensor._keras_history.operation


def _convolutions_before(layer: Any) -> int:
    """The convolutions on the way from the model's input to a layer, along the first input of each layer."""
    from keras import layers

    count = 0
    while not isinstance(layer, layers.InputLayer):
        count += isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D)
        first = layer.input[0] if isinstance(layer.input, list) else layer.input
        layer = _producer(first)
    return count
