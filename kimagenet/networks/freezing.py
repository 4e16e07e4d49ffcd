"""Which layers of a network are trained. `choose` decides; the others read and set the flags of Keras' layers."""

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pipelines.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import keras

ALL_BUT_HEAD = "all-but-head"
NONE = "none"


def choose(text: str, names: Sequence[str], head: int) -> list[bool]:
    """Decides which layers are frozen.

    Args:
        text: "none"; "all-but-head"; a number, the first N layers; or names with *, ? and [], with commas between them.
        names: of the layers with weights, in the order of the network.
        head: the position of the layer with the head's weights.

    Returns:
        For each layer whether it is frozen.

    Raises:
        UserError: a name fits no layer, there are fewer layers, or nothing is left to train.
    """
    if text == NONE:
        frozen = [False] * len(names)
    elif text == ALL_BUT_HEAD:
        frozen = [position != head for position in range(len(names))]
    elif text.isdecimal() and text.isascii():
        frozen = [position < int(text[:9]) for position in range(len(names))]
    else:
        patterns = [part.strip() for part in text.split(",")]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                remedy = did_you_mean(pattern, names) or f"its first layers are {', '.join(names[:4])}"
                raise UserError(f"freeze: no layer with weights fits {pattern!r}", remedy=remedy, setting="freeze")
        frozen = [any(fnmatchcase(name, pattern) for pattern in patterns) for name in names]
    if all(frozen):
        what = f"freeze: {text} freezes all {len(names)} layers with weights, so nothing would be trained"
        raise UserError(what, setting="freeze")
    return frozen


def freeze(model: "keras.Model", text: str) -> None:
    """Freezes the layers that `choose` says, and trains all others. "" leaves all as they are.

    A frozen BatchNormalization uses its moving statistics, and keeps them.

    Args:
        model: the network.
        text: as for `choose`.

    Raises:
        UserError: as `choose`, or the network has no weights that are trained.
    """
    if text:
        layers = list(weighted_layers(model))
        frozen = choose(text, [layer.name for layer in layers], _head(model, layers))
        train_all(model)
        for layer, is_frozen in zip(layers, frozen, strict=True):
            if is_frozen:
                layer.trainable = False
    if not model.trainable_variables:
        remedy = f"train some of them: {ALL_BUT_HEAD} or {NONE}"
        raise UserError("all its layers are frozen", path=model.name, remedy=remedy, setting="freeze")


def train_all(model: "keras.Model") -> None:
    """Lets all layers of a network be trained."""
    # Assigning the value that the network has already changes no layer, because TensorFlow leaves out such assignments.
    model.trainable = False
    model.trainable = True


def weighted_layers(model: "keras.Model") -> Iterator["keras.Layer"]:
    """The layers with weights, in the order of the network; those of nested models instead of the nested model."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from weighted_layers(layer)
        elif layer.weights:
            yield layer


def parameters(model: "keras.Model") -> tuple[int, int]:
    """The numbers of parameters that are trained, and of all."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables), model.count_params()


def _head(model: "keras.Model", layers: Sequence["keras.Layer"]) -> int:
    """The position of the layer with the head's weights."""
    from kimagenet.networks.heads import find_ending
    from kimagenet.networks.rebuild import opened

    ending = find_ending(opened(model))
    last = ending.last if ending and ending.last is not None else layers[-1]
    return next(position for position, layer in enumerate(layers) if layer is last)
