"""The range of values that a model takes. Ours take -1 to 1; models of others may scale their input themselves."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from kimagenet.networks.heads import has_our_head
from kimagenet.networks.rebuild import SCALING, applied

_log = logging.getLogger(__name__)

Span = tuple[float, float]
OURS: Span = (-1.0, 1.0)
_SPANS: tuple[Span, ...] = (OURS, (0.0, 1.0), (0.0, 255.0))
_RESULTS: tuple[Span, ...] = (*_SPANS, (-0.5, 0.5))  # what a first layer scales to
_SMALL, _LARGE = (0.9, 8.0), (200.0, 300.0)  # widths of standardized values, and of 0 to 255 without a mean


class InputRange(NamedTuple):
    """What turns images in -1 to 1 into the input of a network: `scale` · x + `offset`, for each channel of the input.

    Attributes:
        scale: of each channel.
        offset: of each channel.
        is_bgr: whether the channels have the order blue, green, red.
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]
    is_bgr: bool = False

    @classmethod
    def of(cls, span: Span) -> "InputRange":
        """The same range for all channels."""
        half = (span[1] - span[0]) / 2
        return cls((half,) * 3, (span[0] + half,) * 3)


# By the names of Keras' preprocessing, and by the ends of the range.
_DEVIATION, _MEAN = (0.229, 0.224, 0.225), (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0 to 1
_MEAN_BGR = (103.939, 116.779, 123.68)  # of ImageNet, in 0 to 255
RANGES = {
    "tf": InputRange.of(OURS),
    "0..1": InputRange.of((0.0, 1.0)),
    "0..255": InputRange.of((0.0, 255.0)),
    "torch": InputRange(
        tuple(0.5 / deviation for deviation in _DEVIATION),
        tuple((0.5 - mean) / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)),
    ),
    "caffe": InputRange((127.5,) * 3, tuple(127.5 - mean for mean in _MEAN_BGR), is_bgr=True),
}


def with_range(model: keras.Model, taken: InputRange) -> keras.Model:
    """The model for images in -1 to 1.

    Args:
        model: a model of square RGB images.
        taken: the range that it takes.

    Returns:
        A model that begins with layers that scale the images, or the model itself if it takes -1 to 1.
    """
    if taken == RANGES["tf"]:
        return model
    image = keras.Input(model.input_shape[1:], dtype="float32", name="image")
    x = keras.ops.flip(image, axis=-1) if taken.is_bgr else image
    scale: Any = list(taken.scale) if len(set(taken.scale)) > 1 else taken.scale[0]
    offset: Any = list(taken.offset) if len(set(taken.offset)) > 1 else taken.offset[0]
    x = keras.layers.Rescaling(scale, offset, dtype="float32", name=SCALING)(x)
    if keras.backend.is_int_dtype(dtype := model.inputs[0].dtype):
        x = keras.ops.cast(keras.ops.round(x), dtype)
    return keras.Model(image, applied(model, x), name=model.name)


def decide(model: keras.Model, asked: str, found: Span | None, source: Path | str, is_ours: bool) -> InputRange:
    """Decides which range a model takes, with a message if this had to be decided.

    Args:
        model: a model of square RGB images.
        asked: a name of `RANGES`, or "auto".
        found: what `find_range` found, perhaps in the model before it was rebuilt.
        source: what the model is, for the message.
        is_ours: whether it takes -1 to 1 if nothing else is known, because a run or our code made it.

    Returns:
        The range.
    """
    if asked != "auto":
        if found and RANGES[asked] != InputRange.of(found):
            text = "%s: its first layers show that it takes images in %g to %g, but input_range is %s; it gets %s"
            _log.warning(text, source, *found, asked, asked)
        return RANGES[asked]
    if has_our_head(model) or any(layer.name == SCALING for layer in model.layers):
        return RANGES["tf"]
    if found is None and not is_ours:
        _log.warning(
            "%s: the range of its input is not known; it gets images in -1 to 1; if it takes others, say so by "
            "input_range, which is one of %s",
            source,
            ", ".join(RANGES),
        )
    if found in (None, OURS):
        return RANGES["tf"]
    assert found is not None
    _log.warning("%s: its first layers show that it takes images in %g to %g; it gets this range", source, *found)
    return InputRange.of(found)


def scaling_of_first_layers(model: keras.Model) -> InputRange:
    """What the first layers of a model do to images in 0 to 255, as the range of a network without these layers.

    Args:
        model: a model of RGB images whose first layers scale each channel.
    """
    steps = list(_first_steps(model))[-1]
    black, white = _values(steps, 0.0), _values(steps, 255.0)
    return InputRange(tuple(((white - black) / 2).tolist()), tuple(((white + black) / 2).tolist()))


def find_range(model: keras.Model) -> Span | None:
    """Finds the range of a model's input by its first layers, if they scale the values of each pixel.

    They are computed for images of one value. If the result is scale × value + offset, the range is the one that they
    turn into -1 to 1, 0 to 1, -0.5 to 0.5 or 0 to 255, or else into values around zero.

    Args:
        model: a model of RGB images.

    Returns:
        -1 to 1, 0 to 1 or 0 to 255; None if it is not known.
    """
    if keras.backend.is_int_dtype(model.inputs[0].dtype):
        return (0.0, 255.0)
    try:
        scalings = [_scaling(steps) for steps in _first_steps(model)]
    except Exception:  # any, of the layers of a foreign model: then the range is not known, and a message says so
        return None
    for scaling in scalings:  # also part of them may say it: 0.5 x + 0.5 does, and 2 (0.5 x + 0.5) - 1 does not
        if scaling and (span := _only(_is_exact, *scaling)):
            return span
    return _only(_is_centred, *scalings[-1]) if scalings and scalings[-1] else None


def _scaling(steps: list[keras.Model]) -> tuple[np.ndarray, np.ndarray] | None:
    """The scale and the offset of each channel, if that is all that the first layers do."""
    offset, one, white = (_values(steps, value) for value in (0.0, 1.0, 255.0))
    scale = one - offset
    return (scale, offset) if np.allclose(offset + 255 * scale, white, rtol=1e-3, atol=1e-2) else None


def _only(fits: Callable[[np.ndarray, np.ndarray], bool], scale: np.ndarray, offset: np.ndarray) -> Span | None:
    """The range whose ends are scaled to fitting values, if there is only one."""
    if np.allclose(scale, 1) and np.allclose(offset, 0):  # they scale nothing, so they say nothing
        return None
    found = [span for span in _SPANS if fits(offset + span[0] * scale, offset + span[1] * scale)]
    return found[0] if len(found) == 1 else None


def _is_exact(low: np.ndarray, high: np.ndarray) -> bool:
    return any(np.allclose([low, high], np.reshape(span, (2, 1)), atol=0.01 * (span[1] - span[0])) for span in _RESULTS)


def _is_centred(low: np.ndarray, high: np.ndarray) -> bool:
    width, centre = np.mean(high - low), np.mean(high + low) / 2
    return any(least <= width <= most for least, most in (_SMALL, _LARGE)) and abs(centre) <= 0.35 * width


def _values(steps: list[keras.Model], value: float) -> np.ndarray:
    """The result of the first layers in the middle of an image of one value, float64 [3]."""
    height, width, _ = (size or 32 for size in steps[0].input_shape[1:])
    images = np.full((1, height, width, 3), value, np.float32)
    for step in steps:
        images = step(images, training=False)
    result = np.asarray(images, np.float64)[0]
    return result[result.shape[0] // 2, result.shape[1] // 2]


def _first_steps(model: keras.Model) -> Iterator[list[keras.Model]]:
    """The first operation, the first two, and so on, until one has weights that are trained, as models in a row."""
    graph = keras.Model(model.inputs[0], model.outputs[0])
    end = graph.inputs[0]
    before: list[keras.Model] = []
    while True:
        nodes = (node for level in graph._nodes_by_depth.values() for node in level)
        users = [node for node in nodes if any(tensor is end for tensor in node.input_tensors)]
        if len(users) != 1:
            return
        operation, node = users[0].operation, users[0]
        if isinstance(operation, keras.Model):
            yield from ([*before, *steps] for steps in _first_steps(operation))
            return
        if not _is_of_pixels(operation, node.output_tensors):
            return
        end = node.output_tensors[0]
        before = [keras.Model(graph.inputs[0], end)]
        yield before


def _is_of_pixels(operation: keras.Operation, outputs: list[keras.KerasTensor]) -> bool:
    has_weights = bool(getattr(operation, "weights", [])) and not isinstance(operation, keras.layers.Normalization)
    return not has_weights and len(outputs) == 1 and len(outputs[0].shape) == 4 and outputs[0].shape[-1] == 3
