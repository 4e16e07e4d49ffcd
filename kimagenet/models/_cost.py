"""What a forward pass costs."""

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def multiply_adds(model: "keras.Model") -> int:
    """Multiply-adds of one image in the Conv2D, DepthwiseConv2D and Dense layers; FLOPs are twice as many.

    Biases, normalization, activations and pools do not count, as usual. A nested model counts once for each call.
    """
    from keras import Model, layers

    total = 0
    for layer in model.layers:
        if isinstance(layer, Model):
            total += len(layer._inbound_nodes) * multiply_adds(layer)
        elif isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D | layers.Dense):
            positions = layer.output.shape[
                1:-1
            ]  # each weight is used once at each position; a Dense layer has no positions
            total += prod(layer.kernel.shape) * prod(positions)
    return total
