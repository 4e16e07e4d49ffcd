"""Starting from a trained model: MODEL may be a .keras or .h5 file, or a run directory. Imports Keras only to load."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kimagenet import models
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines.errors import UserError

if TYPE_CHECKING:
    import keras

SUFFIXES = (".keras", ".h5")


def is_saved(model: str) -> bool:
    """Whether MODEL means a file or a run directory rather than a file of kimagenet/models."""
    return model not in models.names() and (model.endswith(SUFFIXES) or Path(model).is_dir())


def find(model: str) -> Path:
    """The absolute path of the model file: of a run its final.keras, or checkpoints/last.keras if it was interrupted.

    Raises `UserError` if there is none.
    """
    path = Path(model).absolute()
    if path.is_dir():
        run = RunDirectory.existing(path)
        path = run.final if run.final.is_file() else run.last
    if not path.is_file():
        raise UserError(f"{path}: no such model file")
    return path


def recipe_of(model: str) -> Recipe:
    """The recipe of the run that the model is of; else the defaults, with the image size that the file names."""
    path = find(model)
    for folder in (path.parent, path.parent.parent):
        if (folder / "run.json").is_file():
            return Recipe.load(RunDirectory(folder).recipe).replace(model=str(path))
    return Recipe(model=str(path), image_size=_image_size(path) or Recipe.image_size, crop_ratio=1.0)


def build(
    path: Path,
    num_classes: int,
    image_size: int,
    dropout_rate: float = 0.0,
    say: Callable[[str], None] = print,
) -> "keras.Model":
    """The saved network with its weights, for other images and under the current dtype policy; all of it trainable.

    A head as `kimagenet.models` make it gets the dropout rate, and is replaced, which is said, if it knows another
    number of classes. Files are loaded in Keras' safe mode. Raises `UserError` if the file is no model that could do.
    """
    import keras

    try:
        loaded = keras.models.load_model(path, compile=False)
        model = rebuilt(loaded, image_size)
    # Keras raises whatever a broken or foreign file provokes.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{path}: cannot be trained at {image_size} pixels ({reason})") from None
    known = model.output_shape[-1]
    if {"global_pool", "Logits"} <= {layer.name for layer in model.layers}:
        model = _with_head(model, num_classes, dropout_rate)
        if known != num_classes:
            say(f"{path}: its head for {known} classes is replaced by a new one for {num_classes}")
        return model
    check_probabilities(model, path)
    if known != num_classes:
        remedy = "its last layers are not `global_pool` and `Logits`, so no other head can be put there"
        raise UserError(f"{path}: knows {known} classes, the data set has {num_classes}; {remedy}")
    return model


def check_probabilities(model: "keras.Model", path: Path) -> None:
    """Raises `UserError` if a model of square RGB images does not answer a grey one with probabilities, or NaN."""
    answer = model(np.zeros((1, *model.input_shape[1:]), np.float32), training=False)
    if isinstance(answer, dict | list | tuple) or len(answer.shape) != 2:
        raise UserError(f"{path}: gives outputs {model.output_shape}, not one probability a class")
    answer = np.asarray(answer, np.float64)
    if answer.min() < 0 or abs(answer.sum() - 1) > 0.01:
        remedy = "end it with a softmax, as keras.Sequential([model, keras.layers.Softmax()])"
        raise UserError(f"{path}: its outputs are no probabilities; {remedy}")


def rebuilt(loaded: "keras.Model", image_size: int) -> "keras.Model":
    """The same layers and weights with another input; layers follow the dtype policy, but the last stays float32."""
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
    """The model with a head of its own; the weights of `Logits` go over if they fit."""
    from kimagenet.models._layers import head

    pooled = model.get_layer("global_pool").output
    new = head(model.inputs[0], pooled, num_classes, dropout_rate, model.name)
    if model.output_shape[-1] == num_classes:
        new.get_layer("Logits").set_weights(model.get_layer("Logits").get_weights())
    return new


def _image_size(path: Path) -> int | None:
    """The height that the file's first input has, without loading it; None where that cannot be said."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
        else:
            import h5py

            with h5py.File(path) as file:
                config = json.loads(file.attrs["model_config"])
    except (OSError, KeyError, ValueError):
        return None  # loading it will say what is wrong
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
