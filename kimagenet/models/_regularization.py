"""Which weights the L2 penalty sees."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def l2_kernels(model: "keras.Model") -> list[Any]:
    """The kernel variables under the L2 penalty λ·Σw², in layer order.

    Kernels of the Conv2D, DepthwiseConv2D and Dense layers that stand directly in `model`; no biases, no
    BatchNormalization, and nothing inside a nested model (OSNet's gate is one), as in keras_imagenet.
    """
    from keras import layers

    kinds = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
    return [layer.kernel for layer in model.layers if isinstance(layer, kinds)]
