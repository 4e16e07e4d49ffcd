"""Looks at the first batch of a run: whether its values are those of images, and those that the network knows."""

import logging
from typing import Any

import keras
import numpy as np

from kimagenet.training.loop import Loop
from kimagenet.training.steps import to_input

_log = logging.getLogger(__name__)

_IMAGES = 32  # of the batch that are looked at
_MARGIN = 0.01  # of the range: pixels are rounded
_LEAST_DEVIATION = 0.02  # of all values of a batch: photos have about 0.5
_MOST_RATIO = 3.0  # photos of another kind, and augmentation, change the deviation by less


class FirstBatch(keras.callbacks.Callback):
    """Warns after the first step of a run if its images make no sense.

    Args:
        loop: the loop.
        has_weights: whether the network began with trained weights, so that it knows what values to expect.
    """

    needs_every_loss = False

    def __init__(self, loop: Loop, has_weights: bool) -> None:
        super().__init__()
        self._loop = loop
        self._has_weights = has_weights

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._loop.global_step != 1:
            return
        local = self._loop.training.strategy.experimental_local_results(self._loop.images)[0]
        images = to_input(local[:_IMAGES]).numpy()
        problem = problem_of(images)
        if not problem and self._has_weights:
            problem = problem_for(self._loop.model, images)
        if problem:
            _log.warning("the first batch: %s", problem)


def problem_of(images: np.ndarray) -> str:
    """What is wrong with images, float32 [B, H, W, 3] in -1 to 1; "" if nothing."""
    low, high, deviation = float(images.min()), float(images.max()), float(images.std())
    if not (low >= -1 - _MARGIN and high <= 1 + _MARGIN):
        return f"its values are {low:.3g} to {high:.3g}, but models get -1 to 1"
    if deviation < _LEAST_DEVIATION:
        mean = float(images.mean())
        return f"its images are almost of one colour (mean {mean:.3g}, deviation {deviation:.2g}, in -1 to 1)"
    return ""


def problem_for(model: keras.Model, images: np.ndarray) -> str:
    """Compares what the first BatchNormalization gets with its moving statistics.

    Args:
        model: a network with trained weights.
        images: float32 [B, H, W, 3] in -1 to 1.

    Returns:
        What does not fit, "" if nothing does or the network has no such layer.
    """
    levels = keras.Model(model.inputs[0], model.outputs[0])._nodes_by_depth
    nodes = [node for depth in sorted(levels, reverse=True) for node in levels[depth]]
    found = [node for node in nodes if isinstance(node.operation, keras.layers.BatchNormalization)]
    if not found:
        return ""
    layer, values = found[0].operation, found[0].input_tensors[0]
    if not np.any(layer.moving_mean) and np.all(np.asarray(layer.moving_variance) == 1):  # as before any training
        return ""
    seen = np.asarray(keras.Model(model.inputs[0], values)(images, training=False), np.float64)
    deviations = seen.reshape(-1, seen.shape[-1]).std(axis=0)
    known = np.sqrt(np.asarray(layer.moving_variance, np.float64) + layer.epsilon)
    ratio = float(np.median(np.sqrt(deviations**2 + layer.epsilon) / known))
    if 1 / _MOST_RATIO <= ratio <= _MOST_RATIO:
        return ""
    what = f"{layer.name} gets values {ratio:.2g} times as wide as those that it was trained with"
    return f"{what}; is input_range right?"
