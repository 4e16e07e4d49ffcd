"""The weights in the L2 penalty."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def l2_kernels(model: "keras.Model") -> list[Any]:
    """The kernels in the L2 penalty λ·Σw², in the order of the layers.

    These are the kernels of the Conv2D, DepthwiseConv2D and Dense layers that are directly in `model`. Biases,
    BatchNormalization and everything in a nested model (such as OSNet's gate) are left out, as in keras_imagenet; so
    are frozen layers, whose penalty would be a constant.
    """
    from keras import layers

    kinds = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
    return [layer.kernel for layer in model.layers if isinstance(layer, kinds) and layer.trainable]
