"""Training that starts from a trained model: a .keras or .h5 file, or a run directory. Imports Keras only to load."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kimagenet import models
from kimagenet.inference.trained import check_probabilities, find_model, run_of
from kimagenet.recipe import Recipe
from pipelines.errors import UserError, first_line

if TYPE_CHECKING:
    import keras

SUFFIXES = (".keras", ".h5")


def is_saved(model: str) -> bool:
    """Whether a model's name means a file or a run directory, not one of `kimagenet.models`."""
    return model not in models.names() and (model.endswith(SUFFIXES) or Path(model).is_dir())


def recipe_of(model: str) -> Recipe:
    """The recipe of the model's run; without a run the defaults, with the image size of the model's input."""
    path = find_model(Path(model).absolute())
    if run := run_of(path):
        return Recipe.load(run.recipe).replace(model=str(path))
    return Recipe(model=str(path), image_size=_image_size(path) or Recipe.image_size, crop_ratio=1.0)


def build(
    path: Path,
    num_classes: int,
    image_size: int,
    dropout_rate: float = 0.0,
    say: Callable[[str], None] = print,
) -> "keras.Model":
    """Builds the network of a model file with its weights, under the current dtype policy. All layers are trainable.

    A head like those of `kimagenet.models` gets the dropout rate. If it has another number of classes, it is replaced,
    with a message. Files are loaded in Keras' safe mode.

    Args:
        path: a .keras or .h5 file.
        num_classes: classes of the data set.
        image_size: height and width of its images, pixels.
        dropout_rate: dropout before the last dense layer.
        say: prints the message.

    Returns:
        A model that returns probabilities [N, num_classes].

    Raises:
        UserError: the file is not a model, or not one that fits.
    """
    import keras

    try:
        loaded = keras.models.load_model(path, compile=False)
        model = rebuilt(loaded, image_size)
    # Keras raises any exception for a broken or foreign file.
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"cannot be trained at {image_size} pixels ({reason})", path=path) from None
    known = model.output_shape[-1]
    if {"global_pool", "Logits"} <= {layer.name for layer in model.layers}:
        model = _with_head(model, num_classes, dropout_rate)
        if known != num_classes:
            say(f"{path}: its head for {known} classes is replaced by a new one for {num_classes}")
        return model
    check_probabilities(model, path)
    if known != num_classes:
        why = "its last layers are not `global_pool` and `Logits`, so its head cannot be replaced"
        raise UserError(f"knows {known} classes, the data set has {num_classes}; {why}", path=path)
    return model


def rebuilt(loaded: "keras.Model", image_size: int) -> "keras.Model":
    """Copies a model, with its weights, for another input size.

    Args:
        loaded: a model of square RGB images.
        image_size: height and width of the new input, pixels.

    Returns:
        A model whose layers follow the current dtype policy, except the last one, which is float32.
    """
    import keras

    policy = keras.config.dtype_policy().name
    last = loaded.layers[-1].name

    def clone(layer: "keras.Layer") -> "keras.Layer":
        changes = {"trainable": True, "dtype": "float32" if layer.name == last else policy}
        return type(layer).from_config(layer.get_config() | changes)

    functional = keras.Model(loaded.inputs[0], loaded.outputs[0], name=loaded.name)
    image = keras.Input((image_size, image_size, 3), dtype="float32", name="image")
    model = keras.models.clone_model(functional, input_tensors=image, clone_function=clone, recursive=True)
    model.set_weights(loaded.get_weights())
    return model


def _with_head(model: "keras.Model", num_classes: int, dropout_rate: float) -> "keras.Model":
    """The model with a new head. The weights of `Logits` are kept if they fit."""
    from kimagenet.models._layers import head

    pooled = model.get_layer("global_pool").output
    new = head(model.inputs[0], pooled, num_classes, dropout_rate, model.name)
    if model.output_shape[-1] == num_classes:
        new.get_layer("Logits").set_weights(model.get_layer("Logits").get_weights())
    return new


def _image_size(path: Path) -> int | None:
    """The height of the file's first input, without loading the model; None if it is not known."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
        else:
            import h5py

            with h5py.File(path) as file:
                config = json.loads(file.attrs["model_config"])
    except (OSError, KeyError, ValueError):
        return None  # loading the model will fail with the reason
    shape = _first(config, ("batch_shape", "batch_input_shape"))
    return shape[1] if isinstance(shape, list) and len(shape) == 4 and isinstance(shape[1], int) else None


def _first(config: Any, keys: tuple[str, ...]) -> Any:
    """The first value under one of `keys`, depth first."""
    if isinstance(config, dict):
        for key in keys:
            if key in config:
                return config[key]
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            if (found := _first(part, keys)) is not None:
                return found
    return None
