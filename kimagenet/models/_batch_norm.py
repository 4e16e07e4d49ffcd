"""The BatchNormalization layers of a model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


def batch_norms(model: "keras.Model") -> "Iterator[keras.layers.BatchNormalization]":
    """All BatchNormalization layers of a model, those of nested models included, in the order of the layers."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from batch_norms(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            yield layer
