"""The models: one file each, with its recipes beside it. A new model is a new file in this folder.

A model file holds `build(num_classes, image_size, dropout_rate) -> keras.Model`, `RECIPES` and `REPORTED` (both keyed
by recipe name; the recipe that bears the model's name is the default). It imports Keras inside `build` only, for
recipes are read where waiting seconds for Keras would hurt.

Every model takes float32 [B, image_size, image_size, 3] RGB in [-1, 1] and returns float32 [B, num_classes]
probabilities, from a Dense layer named `Logits`.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from kimagenet.models._cost import multiply_adds
from kimagenet.models._recipes import Reported
from kimagenet.models._regularization import l2_kernels
from kimagenet.recipe import Recipe
from pipelines.errors import UserError

if TYPE_CHECKING:
    import keras

__all__ = ["MIN_IMAGE_SIZE", "Reported", "build", "l2_kernels", "multiply_adds", "names", "recipes", "reported"]

MIN_IMAGE_SIZE = 32  # five halvings


def names() -> tuple[str, ...]:
    """The models that can be built, sorted: the files of this folder without a leading underscore."""
    return tuple(sorted(path.stem for folder in __path__ for path in Path(folder).glob("[!_]*.py")))


def build(name: str, num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """A new, randomly initialized functional model under the current Keras dtype policy.

    `image_size` in pixels, `dropout_rate` before the last layer (0 = none). Raises `UserError` for an unknown name and
    for values out of range.
    """
    if num_classes < 1:
        raise UserError(f"{name}: num_classes must be at least 1, not {num_classes}")
    if image_size < MIN_IMAGE_SIZE:
        raise UserError(f"{name}: image_size must be at least {MIN_IMAGE_SIZE} pixels, not {image_size}")
    if not 0 <= dropout_rate < 1:
        raise UserError(f"{name}: dropout_rate must be in [0, 1), not {dropout_rate}")
    return _file(name).build(num_classes=num_classes, image_size=image_size, dropout_rate=dropout_rate)


def recipes() -> dict[str, Recipe]:
    """Every recipe of every model file, by recipe name; imports no Keras."""
    return {key: recipe for name in names() for key, recipe in _file(name).RECIPES.items()}


def reported() -> dict[str, Reported]:
    """The top-1 accuracy reported for each recipe, by recipe name; imports no Keras."""
    return {key: figure for name in names() for key, figure in _file(name).REPORTED.items()}


def _file(name: str) -> ModuleType:
    if name not in names():
        raise UserError(f"{name}: no such model; the models are {', '.join(names())}")
    return import_module(f"{__name__}.{name}")
