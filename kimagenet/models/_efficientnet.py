"""EfficientNet (Tan & Le 2019, arXiv 1905.11946), scaled by width and depth. Imports Keras: import it inside `build`.

Layers have the names of keras.applications. There is no rescaling layer here, unlike there.
"""

import math

import keras
from keras import layers

from kimagenet.models._layers import Tensor, classifier, image_input

# Stages: kernel, expansion, stride, width, repeats, before scaling.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 6, 2, 24, 2),
    (5, 6, 2, 40, 2),
    (3, 6, 2, 80, 3),
    (5, 6, 1, 112, 3),
    (5, 6, 2, 192, 4),
    (3, 6, 1, 320, 1),
)
STEM, TOP = 32, 1280
DROP_CONNECT = 0.2
# The original divides by B0's number of blocks at every depth, so deeper variants drop more than the paper's.
DROP_CONNECT_BLOCKS = sum(stage[-1] for stage in STAGES)


def efficientnet(
    name: str, width: float, depth: float, num_classes: int, image_size: int, dropout_rate: float
) -> keras.Model:
    """The model.

    Args:
        name: of the model.
        width: the paper's multiplier of the widths.
        depth: the paper's multiplier of the repeats.
        num_classes: width of the last layer.
        image_size: pixels.
        dropout_rate: before the last layer.
    """
    inputs = image_input(image_size)
    x = _conv_norm(inputs, scaled_width(STEM, width), 3, 2, "stem")
    x = _swish(x, "stem_activation")
    index = 0
    for number, (kernel, expansion, stride, filters, repeats) in enumerate(STAGES, start=1):
        for repeat in range(math.ceil(repeats * depth)):
            x = mbconv(
                x,
                scaled_width(filters, width),
                kernel,
                expansion,
                stride if repeat == 0 else 1,
                drop_rate=DROP_CONNECT * index / DROP_CONNECT_BLOCKS,
                name=f"block{number}{chr(ord('a') + repeat)}",
            )
            index += 1
    x = _conv_norm(x, scaled_width(TOP, width), 1, 1, "top")
    x = _swish(x, "top_activation")
    return classifier(inputs, x, num_classes, dropout_rate, name)


def scaled_width(filters: int, width: float) -> int:
    """The multiple of 8 nearest to filters·width, never below 90 % of it."""
    exact = filters * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def mbconv(x: Tensor, filters: int, kernel: int, expansion: int, stride: int, *, drop_rate: float, name: str) -> Tensor:
    """Expand, depthwise, squeeze-and-excite, project, shortcut; `drop_rate` drops the whole branch of a sample."""
    shortcut, width = x, x.shape[-1]
    if expansion != 1:
        x = _conv_norm(x, width * expansion, 1, 1, f"{name}_expand")
        x = _swish(x, f"{name}_expand_activation")
    x = layers.DepthwiseConv2D(
        kernel, stride, padding="same", use_bias=False, depthwise_initializer=_init(), name=f"{name}_dwconv"
    )(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    x = _swish(x, f"{name}_activation")
    # The squeeze is a quarter of the block's input width, not of its expansion.
    x = _squeeze_excite(x, max(1, width // 4), name)
    x = _conv_norm(x, filters, 1, 1, f"{name}_project")
    if stride == 1 and width == filters:
        if drop_rate > 0:
            x = layers.Dropout(drop_rate, noise_shape=(None, 1, 1, 1), name=f"{name}_drop")(x)
        x = layers.Add(name=f"{name}_add")([x, shortcut])
    return x


def _squeeze_excite(x: Tensor, squeeze: int, name: str) -> Tensor:
    channels = x.shape[-1]
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_se_squeeze")(x)
    gate = layers.Conv2D(
        squeeze, 1, padding="same", activation="swish", kernel_initializer=_init(), name=f"{name}_se_reduce"
    )(gate)
    gate = layers.Conv2D(
        channels, 1, padding="same", activation="sigmoid", kernel_initializer=_init(), name=f"{name}_se_expand"
    )(gate)
    return layers.Multiply(name=f"{name}_se_excite")([x, gate])


def _conv_norm(x: Tensor, filters: int, kernel: int, stride: int, name: str) -> Tensor:
    x = layers.Conv2D(
        filters, kernel, stride, padding="same", use_bias=False, kernel_initializer=_init(), name=f"{name}_conv"
    )(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)


def _swish(x: Tensor, name: str) -> Tensor:
    return layers.Activation("swish", name=name)(x)


def _init() -> keras.initializers.Initializer:
    """He initialization on fan-out. Each layer needs its own: one object gives layers of equal shape equal values."""
    return keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="truncated_normal")
