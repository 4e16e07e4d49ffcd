"""The range of values that a model takes. Ours take -1 to 1; models of others may scale their input themselves."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np

_log = logging.getLogger(__name__)

Span = tuple[float, float]
OURS: Span = (-1.0, 1.0)
_SPANS: tuple[Span, ...] = (OURS, (0.0, 1.0), (0.0, 255.0))
_RESULTS: tuple[Span, ...] = (*_SPANS, (-0.5, 0.5))  # what a first layer scales to
_SMALL, _LARGE = (0.9, 8.0), (200.0, 300.0)  # widths of standardized values, and of 0 to 255 without a mean


def with_our_range(model: keras.Model, span: Span | None, path: Path, is_of_run: bool) -> keras.Model:
    """The model for images in -1 to 1, with a message if this had to be decided.

    Args:
        model: a model of square RGB images.
        span: the range that it takes, of `find_range`; None: not known.
        path: its file, for the message.
        is_of_run: whether a run wrote the file, so that the range is ours if nothing else is known.

    Returns:
        A model that begins with a layer that scales the images, or the model itself.
    """
    if span is None and not is_of_run and not {"global_pool", "Logits"} <= {layer.name for layer in model.layers}:
        _log.warning(
            "%s: the range of its input is not known; it gets images in -1 to 1; if it takes 0 to 255, save "
            "keras.Sequential([keras.layers.Rescaling(127.5, 127.5), model])",
            path,
        )
    if span in (None, OURS):
        return model
    assert span is not None
    _log.warning("%s: its first layers show that it takes images in %g to %g; it gets this range", path, *span)
    scale = (span[1] - span[0]) / 2
    image = keras.Input(model.input_shape[1:], dtype="float32", name="image")
    scaled = keras.layers.Rescaling(scale, span[0] + scale, dtype="float32", name="to_input_range")(image)
    if keras.backend.is_int_dtype(dtype := model.inputs[0].dtype):
        scaled = keras.ops.cast(keras.ops.round(scaled), dtype)
    graph = keras.Model(model.inputs[0], model.outputs[0])
    # Not model(scaled): the layers stay in the outer model, where the L2 penalty and the exporters find them.
    return keras.Model(
        image, graph._run_through_graph(scaled, operation_fn=lambda operation: operation), name=model.name
    )


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
