"""Training that starts from a trained model: a .keras or .h5 file, or a run directory. Imports Keras only to load."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kimagenet import models
from kimagenet.inference.class_match import Classes, numbers_in_model
from kimagenet.inference.trained import check_input, check_probabilities, find, find_model, run_of
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines.errors import UserError, first_line
from pipelines.shards.dataset import DatasetInfo

if TYPE_CHECKING:
    import keras

SUFFIXES = (".keras", ".h5")
_WHY_KEPT = "its last layers are not `global_pool` and `Logits`, so its head cannot be replaced"


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
    dataset_dir: Path | None = None,
    say: Callable[[str], None] = print,
) -> "keras.Model":
    """Builds the network of a model file with its weights, under the current dtype policy. All layers are trainable.

    A head like those of `kimagenet.models` gets the dropout rate. If it has other classes, it is replaced, with a
    message. If it has the data set's classes in another order, its weights get this order. Files are loaded in Keras'
    safe mode.

    Args:
        path: a .keras or .h5 file.
        num_classes: classes of the data set.
        image_size: height and width of its images, pixels.
        dropout_rate: dropout before the last dense layer.
        dataset_dir: the data set, whose class names are compared with those of the model's run; None: none.
        say: prints the message.

    Returns:
        A model that returns probabilities [N, num_classes].

    Raises:
        UserError: the file is not a model, or not one that fits.
    """
    from kimagenet.inference.input_range import with_our_range

    model, span = _load(path, image_size)
    known = model.output_shape[-1]
    has_our_head = {"global_pool", "Logits"} <= {layer.name for layer in model.layers}
    if not has_our_head:
        model = with_our_range(model, span, path, is_of_run=run_of(path) is not None)
        check_probabilities(model, path)
        if known != num_classes:
            raise UserError(f"predicts {known} classes, the data set has {num_classes}; {_WHY_KEPT}", path=path)
    numbers: np.ndarray | None = np.arange(num_classes)
    if known == num_classes and dataset_dir is not None:
        numbers = _numbers(path, dataset_dir, has_our_head)
    if numbers is not None and np.any(numbers != np.arange(num_classes)):
        _reorder(model, numbers, path)
        say(f"{path}: its classes have another order than the data set's; its last layer gets the data set's order")
    if has_our_head:
        model = _with_head(model, num_classes, dropout_rate, is_kept=known == num_classes and numbers is not None)
        if known != num_classes:
            say(f"{path}: its head for {known} classes is replaced by a new one for {num_classes}")
        elif numbers is None:
            say(f"{path}: its head for {known} classes is replaced by a new one for the data set's other classes")
    return model


def _load(path: Path, image_size: int) -> tuple["keras.Model", tuple[float, float] | None]:
    """The model of a file, rebuilt for an image size, and the range of its input; None if it is not known."""
    import keras

    from kimagenet.inference.input_range import find_range

    try:
        loaded = keras.models.load_model(path, compile=False)
        check_input(loaded, path)
        span = find_range(loaded)
        model = rebuilt(loaded, image_size)
    except UserError:
        raise
    # Keras raises any exception for a broken or foreign file.
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"cannot be trained at {image_size} pixels ({reason})", path=path) from None
    return model, span


def check_classes(run: RunDirectory, info: DatasetInfo, dataset_dir: Path) -> None:
    """Checks that a run that is resumed, also by force, gets the classes that it began with, in the same order.

    Args:
        run: the run.
        info: of the data set.
        dataset_dir: its folder, for the message.

    Raises:
        UserError: the classes are others, or in another order.
    """
    begun = run.read_info()
    model, data = Classes(*(_texts(begun.get(key)) for key in ("classes", "wnids"))), Classes.of(info)
    is_same = len(model.names) in (0, len(data.names))
    if is_same and model.names:
        is_same = np.array_equal(numbers_in_model(model, data, run.path, dataset_dir), np.arange(len(data.names)))
    if not is_same:
        what = f"began with other classes than those of the data set in {dataset_dir}, or in another order"
        remedy = "start a new run from its model, which adapts the last layer"
        raise UserError(what, path=run.path, remedy=remedy)


def _texts(found: object) -> list[str]:
    """A list of texts from a file that may be damaged; empty if it is not one."""
    return [text if isinstance(text, str) else "" for text in found] if isinstance(found, list) else []


def _numbers(path: Path, dataset_dir: Path, has_our_head: bool) -> np.ndarray | None:
    """The model's number of each class of the data set. None if the classes are others and the head can be replaced."""
    model, data = find(path).known, Classes.of(DatasetInfo.load(dataset_dir))
    if not model.names:  # its user says by the data set what the outputs are
        return np.arange(len(data.names))
    try:
        return numbers_in_model(model, data, path, dataset_dir)
    except UserError as error:
        if has_our_head:
            return None
        raise UserError(f"{error.what}; {_WHY_KEPT}", path=path) from None


def _reorder(model: "keras.Model", numbers: np.ndarray, path: Path) -> None:
    """Gives the outputs of a model the order of the data set: output i becomes the present output numbers[i]."""
    import keras

    position = max((i for i, layer in enumerate(model.layers) if layer.weights), default=0)
    last, after = model.layers[position], model.layers[position + 1 :]
    if isinstance(last, keras.Model) and not after:
        _reorder(last, numbers, path)
        return
    plain_types = (keras.layers.Softmax, keras.layers.Activation)
    if not isinstance(last, keras.layers.Dense) or not all(isinstance(layer, plain_types) for layer in after):
        what = "its classes have another order than the data set's, and its last layer is not Dense"
        raise UserError(what, path=path, remedy="build the shards with the classes in the model's order")
    last.set_weights([weight[..., numbers] for weight in last.get_weights()])


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
    last = loaded.layers[-1]
    while isinstance(last, keras.Model):
        last = last.layers[-1]

    def clone(layer: "keras.Layer | keras.Operation") -> "keras.Layer | keras.Operation":
        if not isinstance(layer, keras.Layer):  # an operation in the graph, as keras.ops.mean
            return type(layer).from_config(layer.get_config())
        changes = {"trainable": True, "dtype": "float32" if layer is last else policy}
        return type(layer).from_config(layer.get_config() | changes)

    functional = keras.Model(loaded.inputs[0], loaded.outputs[0], name=loaded.name)
    image = keras.Input((image_size, image_size, 3), dtype="float32", name="image")
    model = keras.models.clone_model(functional, input_tensors=image, clone_function=clone, recursive=True)
    model.set_weights(loaded.get_weights())
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # takes its mean and variance from its weights
    return model


def _with_head(model: "keras.Model", num_classes: int, dropout_rate: float, is_kept: bool) -> "keras.Model":
    """The model with a new head, with the weights of `Logits` if they are kept."""
    from kimagenet.models._layers import head

    pooled = model.get_layer("global_pool").output
    new = head(model.inputs[0], pooled, num_classes, dropout_rate, model.name)
    if is_kept:
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
