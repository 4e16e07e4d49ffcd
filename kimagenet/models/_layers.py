"""Layers that several models share. Imports Keras, so model files import this inside `build`."""

from typing import Any

import keras
from keras import layers

Tensor = Any  # a KerasTensor: float [B, H, W, C], or [B, C] after the global pool


def image_input(image_size: int) -> Tensor:
    """RGB in [-1, 1], float32 [B, image_size, image_size, 3], also under mixed precision."""
    return keras.Input((image_size, image_size, 3), dtype="float32", name="image")


def norm(x: Tensor, name: str) -> Tensor:
    """BatchNormalization on the channels with Keras' defaults: momentum 0.99, epsilon 1e-3."""
    return layers.BatchNormalization(name=f"{name}_bn")(x)


def relu(x: Tensor, name: str) -> Tensor:
    """ReLU."""
    return layers.ReLU(name=f"{name}_relu")(x)


def conv(x: Tensor, filters: int, kernel: int, stride: int = 1, *, name: str) -> Tensor:
    """A convolution without bias; Keras' default init (Glorot uniform)."""
    return layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=name)(x)


def depthwise(x: Tensor, kernel: int, stride: int = 1, *, name: str) -> Tensor:
    """A depthwise convolution without bias; Keras' default init."""
    return layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=name)(x)


def cbr(x: Tensor, filters: int, kernel: int, stride: int = 1, *, name: str) -> Tensor:
    """Convolution, batch normalization, ReLU."""
    return relu(norm(conv(x, filters, kernel, stride, name=name), name), name)


def max_pool(x: Tensor, *, name: str) -> Tensor:
    """Max pooling 3×3 with stride 2, `same`."""
    return layers.MaxPooling2D(3, 2, padding="same", name=name)(x)


def avg_pool(x: Tensor, *, name: str) -> Tensor:
    """Average pooling 3×3 with stride 1, `same`; the average leaves the padding out."""
    return layers.AveragePooling2D(3, 1, padding="same", name=name)(x)


def concat(branches: list[Tensor], *, name: str) -> Tensor:
    """Joins the channels of the branches."""
    return layers.Concatenate(name=name)(branches)


def classifier(inputs: Tensor, x: Tensor, num_classes: int, dropout_rate: float, name: str) -> keras.Model:
    """The whole model: `x` [B, H, W, C], a global pool, and the head that all models share."""
    return head(inputs, layers.GlobalAveragePooling2D(name="global_pool")(x), num_classes, dropout_rate, name)


def head(
    inputs: Tensor, x: Tensor, num_classes: int, dropout_rate: float, name: str, dropout_name: str = "dropout"
) -> keras.Model:
    """The whole model: pooled features `x` [B, C], dropout (only if the rate is positive) and the layer `Logits`.

    `Logits` returns probabilities; the name is the original's. It is float32 under any dtype policy, because a softmax
    over 1000 classes loses too much precision in float16.
    """
    if dropout_rate > 0:
        x = layers.Dropout(dropout_rate, name=dropout_name)(x)
    outputs = layers.Dense(
        num_classes,
        activation="softmax",
        kernel_initializer=keras.initializers.RandomNormal(mean=0.0, stddev=0.02),
        dtype="float32",
        name="Logits",
    )(x)
    return keras.Model(inputs, outputs, name=name)
