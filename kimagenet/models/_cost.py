"""What a forward pass costs."""

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def multiply_adds(model: "keras.Model") -> int:
    """Multiply-adds of one image through the Conv2D, DepthwiseConv2D and Dense layers; FLOPs are twice as many.

    Biases, normalization, activations and pools are left out, as usual. A nested model counts once for each call.
    """
    from keras import Model, layers

    total = 0
    for layer in model.layers:
        if isinstance(layer, Model):
            total += len(layer._inbound_nodes) * multiply_adds(layer)
        elif isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D | layers.Dense):
            positions = layer.output.shape[1:-1]  # every weight works once for each of them; a Dense layer has none
            total += prod(layer.kernel.shape) * prod(positions)
    return total
