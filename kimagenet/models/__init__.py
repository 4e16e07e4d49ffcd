"""The models and their recipes. A new model is a new file in this folder.

A model file has `build(num_classes, image_size, dropout_rate) -> keras.Model`, `RECIPES` and `REPORTED`. Both are
dictionaries by the name of the recipe; the recipe with the model's name is the default. Keras is imported inside
`build` only, so that reading a recipe does not take seconds.

Every model takes float32 [B, image_size, image_size, 3] RGB in [-1, 1] and returns float32 [B, num_classes]
probabilities, from a Dense layer named `Logits`.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from kimagenet.models._batch_norm import batch_norms
from kimagenet.models._cost import multiply_adds
from kimagenet.models._recipes import KERAS_IMAGENET, NOT_IN_KERAS_IMAGENET, Reported
from kimagenet.models._regularization import l2_kernels
from kimagenet.models._residual import zero_last_gammas
from kimagenet.recipe import Recipe
from pipelines.errors import UserError, did_you_mean
from pipelines.ranges import Range, range_of

if TYPE_CHECKING:
    import keras

__all__ = [
    "MIN_IMAGE_SIZE",
    "Reported",
    "batch_norms",
    "build",
    "is_of_keras_imagenet",
    "l2_kernels",
    "multiply_adds",
    "names",
    "recipes",
    "reported",
    "zero_last_gammas",
]

MIN_IMAGE_SIZE = 32  # pixels: the networks halve the size five times

_RANGES = {
    "num_classes": Range(at_least=1),
    "image_size": Range(at_least=MIN_IMAGE_SIZE),
    "dropout_rate": range_of(Recipe, "dropout_rate"),
}


def names() -> tuple[str, ...]:
    """The names of all models, sorted: the files of this folder without a leading underscore."""
    return tuple(sorted(path.stem for folder in __path__ for path in Path(folder).glob("[!_]*.py")))


def build(name: str, num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """A new, randomly initialized functional model under the current Keras dtype policy.

    Args:
        name: one of `names()`.
        num_classes: width of the last layer.
        image_size: height and width of the input, pixels.
        dropout_rate: before the last layer; 0 = none.

    Raises:
        UserError: the name is unknown, or a value is out of its range.
    """
    arguments = {"num_classes": num_classes, "image_size": image_size, "dropout_rate": dropout_rate}
    for setting, value in arguments.items():
        if problem := _RANGES[setting].problem(value):
            raise UserError(f"{name}: {setting} {problem}, not {value}", setting=setting)
    return _file(name).build(**arguments)


def recipes() -> dict[str, Recipe]:
    """Every recipe of every model file, by recipe name; imports no Keras."""
    return {key: recipe for name in names() for key, recipe in _file(name).RECIPES.items()}


def reported() -> dict[str, Reported]:
    """The accuracy that is reported for each recipe, by recipe name; imports no Keras."""
    return {key: figure for name in names() for key, figure in _file(name).REPORTED.items()}


def is_of_keras_imagenet(name: str) -> bool:
    """Whether the default recipe of a model is keras_imagenet's, which is for ImageNet; imports no Keras."""
    return reported()[name].source in (KERAS_IMAGENET, NOT_IN_KERAS_IMAGENET)


def no_such_model(name: str) -> UserError:
    """The error for a name that is not one of `names()`."""
    remedy = f"{did_you_mean(name, names())} the models are {', '.join(names())}"
    return UserError(f"{name}: no such model", remedy=remedy.strip())


def _file(name: str) -> ModuleType:
    if name not in names():
        raise no_such_model(name)
    return import_module(f"{__name__}.{name}")
