"""The network that a run starts from: by name, of keras.applications, of the user's code, or from a file."""

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kimagenet import import_path, models
from kimagenet.inference import fine_tuning, trained
from kimagenet.networks import applications, freezing
from kimagenet.recipe import Recipe
from pipelines.errors import UserError, first_line

if TYPE_CHECKING:
    import keras

_log = logging.getLogger(__name__)

Say = Callable[[str], None]


def checked(recipe: Recipe, is_kept: bool = False) -> Recipe:
    """The recipe with the whole path of a saved model, or as it is. Imports no Keras.

    Args:
        recipe: the recipe of a run.
        is_kept: whether the run has a copy of the saved model, so that the file may be gone.

    Raises:
        UserError: there is no such model, or it cannot begin in this way.
    """
    name = recipe.model
    is_saved = fine_tuning.is_saved(name)
    if is_saved and not is_kept:
        recipe = recipe.replace(model=str(trained.find_model(Path(name).absolute())))
    elif applications.is_application(name):
        applications.check_name(name)
    elif not is_saved and name not in models.names() and not import_path.is_import_path(name):
        raise models.no_such_model(name)
    is_known = applications.is_application(name) or name in models.names()
    if recipe.pretrained and not is_known:
        what = f"{name}: pretrained is for networks by name; this one has its own weights"
        raise UserError(what, remedy="leave it out", setting="pretrained")
    if recipe.pretrained:
        applications.check_pretrained(name)
    if recipe.zero_gamma and (recipe.pretrained or name not in models.names()):
        what = f"{name}: zero_gamma is for new weights of our own networks"
        raise UserError(what, remedy="leave it out", setting="zero_gamma")
    if recipe.input_range != "auto" and is_known:
        what = f"{name}: its input range is known, so input_range cannot change it"
        raise UserError(what, remedy="leave it out", setting="input_range")
    return recipe


def build(recipe: Recipe, num_classes: int, dataset_dir: Path | None = None, say: Say = print) -> "keras.Model":
    """Builds the network of a recipe, under the current dtype policy: with its weights, its head, and frozen layers.

    Args:
        recipe: `checked`.
        num_classes: classes of the data set.
        dataset_dir: the data set, whose classes are compared with those of a saved model; None: none.
        say: gets a line for each change of the head.

    Returns:
        A model of images in -1 to 1 that returns probabilities [N, num_classes].

    Raises:
        UserError: it cannot be built.
    """
    model = _with_head(recipe, num_classes, dataset_dir, say)
    freezing.freeze(model, recipe.freeze)
    if recipe.unfreeze_epoch and not has_frozen_layers(model):
        what = "unfreeze_epoch has nothing to unfreeze, because no layer is frozen"
        raise UserError(what, remedy="say which layers are frozen first", setting="freeze")
    return model


def has_trained_weights(recipe: Recipe) -> bool:
    """Whether a run begins with weights that were trained before."""
    return recipe.pretrained or fine_tuning.is_saved(recipe.model)


def has_frozen_layers(model: "keras.Model") -> bool:
    """Whether a layer with weights is frozen."""
    return not all(layer.trainable for layer in freezing.weighted_layers(model))


def _with_head(recipe: Recipe, num_classes: int, dataset_dir: Path | None, say: Say) -> "keras.Model":
    name, size, dropout = recipe.model, recipe.image_size, recipe.dropout_rate
    if fine_tuning.is_saved(name):
        options = (dataset_dir, say, recipe.head_on, recipe.input_range)
        return fine_tuning.build(Path(name), num_classes, size, dropout, *options)
    if applications.is_application(name):
        return _of_keras(recipe, num_classes)
    if import_path.is_import_path(name):
        made = _of_user(recipe, num_classes)
        model = fine_tuning.for_images(made, size, recipe.input_range, name, is_ours=False, is_new=True)
        return fine_tuning.for_classes(model, num_classes, dropout, np.arange(num_classes), name, say, recipe.head_on)
    if recipe.pretrained:
        from kimagenet.networks import pretrained

        model = pretrained.build(name, num_classes, size, dropout)
    else:
        model = models.build(name, num_classes, size, dropout)
        if recipe.zero_gamma:
            models.zero_last_gammas(model)
    if recipe.head_on:
        from kimagenet.networks.heads import with_new_head

        model = with_new_head(model, num_classes, dropout, recipe.head_on, name)
    return model


def _of_keras(recipe: Recipe, num_classes: int) -> "keras.Model":
    """A network of keras.applications, with our head and with layers that scale images to the range that it takes."""
    from kimagenet.networks.heads import with_new_head
    from kimagenet.networks.input_range import RANGES, with_range

    name = recipe.model.removeprefix(applications.PREFIX)
    features = applications.build_features(name, recipe.image_size, recipe.pretrained)
    model = with_range(features, RANGES[applications.APPLICATIONS[name].input_range])
    return with_new_head(model, num_classes, recipe.dropout_rate, recipe.head_on, recipe.model)


def _of_user(recipe: Recipe, num_classes: int) -> "keras.Model":
    """The model that the user's function returns. It gets those arguments that it has parameters for."""
    import keras

    function = import_path.load(recipe.model, "")
    given = {"num_classes": num_classes, "image_size": recipe.image_size, "dropout_rate": recipe.dropout_rate}
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    model = function(**{name: value for name, value in given.items() if takes_all or name in names})
    if not isinstance(model, keras.Model):
        raise UserError(f"{recipe.model}: returned {type(model).__name__}, not a Keras model")
    try:
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    # Layers of the user's own raise any exception.
    except Exception as error:
        _log.warning("%s: evaluate, predict and export cannot open its files (%s)", recipe.model, first_line(error))
    return model
