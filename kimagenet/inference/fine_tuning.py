"""Training that starts from a model of others: its input, its classes, its head. Imports Keras only to load."""

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
Say = Callable[[str], None]


def is_saved(model: str) -> bool:
    """Whether a model's name means a file or a run directory, not one of `kimagenet.models`."""
    return model not in models.names() and (model.endswith(SUFFIXES) or Path(model).is_dir())


def recipe_of(model: str) -> Recipe:
    """The recipe of the model's run; without a run the defaults, with the image size of the model's input.

    How the run began is not repeated, for example what it froze: the file has the result.
    """
    path = find_model(Path(model).absolute())
    if run := run_of(path):
        default = Recipe()
        names = ("pretrained", "input_range", "head_on", "freeze", "unfreeze_epoch", "zero_gamma")
        begun = {name: getattr(default, name) for name in names}
        return Recipe.load(run.recipe).replace(model=str(path), **begun)
    return Recipe(model=str(path), image_size=_image_size(path) or Recipe.image_size, crop_ratio=1.0)


def build(
    path: Path,
    num_classes: int,
    image_size: int,
    dropout_rate: float = 0.0,
    dataset_dir: Path | None = None,
    say: Say = print,
    head_on: str = "",
    input_range: str = "auto",
) -> "keras.Model":
    """Builds the network of a model file with its weights, under the current dtype policy.

    A head like those of `kimagenet.models` gets the dropout rate. A head for other classes is replaced, with a
    message. If it has the data set's classes in another order, its weights get this order. Layers that are frozen in
    the file stay frozen. Files are loaded in Keras' safe mode.

    Args:
        path: a .keras or .h5 file.
        num_classes: classes of the data set.
        image_size: height and width of its images, pixels.
        dropout_rate: dropout before the last dense layer.
        dataset_dir: the data set, whose class names are compared with those of the model's run; None: none.
        say: prints the message.
        head_on: the layer whose output gets a new head; "": a head is only replaced if its classes are others.
        input_range: what the model takes, a name of `kimagenet.networks.input_range.RANGES`; "auto": found.

    Returns:
        A model of images in -1 to 1 that returns probabilities [N, num_classes].

    Raises:
        UserError: the file is not a model, or not one that fits.
    """
    import keras

    try:
        loaded = keras.models.load_model(path, compile=False)
    # Keras raises any exception for a broken or foreign file.
    except Exception as error:
        raise UserError(f"cannot be trained, because Keras cannot load it ({first_line(error)})", path=path) from None
    model = for_images(loaded, image_size, input_range, path, is_ours=run_of(path) is not None)
    numbers: np.ndarray | None = np.arange(num_classes)
    if model.output_shape[-1] == num_classes and dataset_dir is not None:
        numbers = _numbers(path, dataset_dir)
    return for_classes(model, num_classes, dropout_rate, numbers, path, say, head_on)


def for_images(
    loaded: "keras.Model", image_size: int, input_range: str, source: Path | str, is_ours: bool, is_new: bool = False
) -> "keras.Model":
    """A model that takes our images: square, of a size, in -1 to 1.

    Args:
        loaded: a model of RGB images.
        image_size: height and width, pixels.
        input_range: what it takes, as for `build`.
        source: what the model is, for messages.
        is_ours: whether it takes -1 to 1 if nothing else is known.
        is_new: whether it was made under the current dtype policy, so that it is kept if it has the size.

    Raises:
        UserError: it takes other inputs, or does not work with this size.
    """
    import keras

    from kimagenet.networks.input_range import decide, find_range, with_range
    from kimagenet.networks.rebuild import rebuilt

    check_input(loaded, source)
    found = find_range(loaded)
    try:
        is_kept = is_new and tuple(loaded.input_shape[1:3]) == (image_size, image_size)
        model = keras.Model(loaded.inputs[0], loaded.outputs[0]) if is_kept else rebuilt(loaded, image_size)
    # Layers raise any exception for a size that they do not take.
    except Exception as error:
        raise UserError(f"cannot be trained at {image_size} pixels ({first_line(error)})", path=source) from None
    return with_range(model, decide(model, input_range, found, source, is_ours))


def for_classes(
    model: "keras.Model",
    num_classes: int,
    dropout_rate: float,
    numbers: np.ndarray | None,
    source: Path | str,
    say: Say,
    head_on: str = "",
) -> "keras.Model":
    """A model that returns the probabilities of the data set's classes. Each change has a message.

    Args:
        model: a model of our images.
        num_classes: classes of the data set.
        dropout_rate: dropout before the last dense layer.
        numbers: int [num_classes], the model's number of each class; None: its classes are others.
        source: what the model is, for messages.
        say: prints the messages.
        head_on: as for `build`.

    Raises:
        UserError: its head cannot be replaced or reordered, or it does not return probabilities.
    """
    from kimagenet.networks.heads import find_ending, has_our_head, with_new_head
    from kimagenet.networks.rebuild import opened

    ending, known = find_ending(opened(model)), model.output_shape[-1]
    is_bare = ending is not None and ending.last is None
    if head_on or is_bare or known != num_classes or numbers is None:
        new = with_new_head(model, num_classes, dropout_rate, head_on, source)
        if head_on or is_bare:
            say(f"{source}: it gets a new head for {num_classes} classes" + f" on {head_on}" * bool(head_on))
        else:
            others = f"{num_classes}" if known != num_classes else "the data set's other classes"
            say(f"{source}: its head for {known} classes is replaced by a new one for {others}")
        return new
    is_ours = has_our_head(model)
    if not is_ours:
        check_probabilities(model, source)
    if np.any(numbers != np.arange(num_classes)):
        _reorder(model, numbers, source)
        say(f"{source}: its classes have another order than the data set's; its last layer gets the data set's order")
    if not is_ours:
        return model
    new = with_new_head(model, num_classes, dropout_rate)
    old_logits, logits = model.get_layer("Logits"), new.get_layer("Logits")
    logits.set_weights(old_logits.get_weights())
    logits.trainable = old_logits.trainable
    return new


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


def _numbers(path: Path, dataset_dir: Path) -> np.ndarray | None:
    """The model's number of each class of the data set. None if the classes are others."""
    model, data = find(path).known, Classes.of(DatasetInfo.load(dataset_dir))
    if not model.names:  # its user says by the data set what the outputs are
        return np.arange(len(data.names))
    try:
        return numbers_in_model(model, data, path, dataset_dir)
    except UserError:
        return None


def _reorder(model: "keras.Model", numbers: np.ndarray, source: Path | str) -> None:
    """Gives the outputs of a model the order of the data set: output i becomes the present output numbers[i]."""
    import keras

    position = max((i for i, layer in enumerate(model.layers) if layer.weights), default=0)
    last, after = model.layers[position], model.layers[position + 1 :]
    if isinstance(last, keras.Model) and not after:
        _reorder(last, numbers, source)
        return
    plain_types = (keras.layers.Softmax, keras.layers.Activation)
    if not isinstance(last, keras.layers.Dense) or not all(isinstance(layer, plain_types) for layer in after):
        what = "its classes have another order than the data set's, and its last layer is not Dense"
        raise UserError(what, path=source, remedy="build the shards with the classes in the model's order")
    last.set_weights([weight[..., numbers] for weight in last.get_weights()])


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
    except Exception:  # any, of a damaged file: loading the model will fail with the reason
        return None
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
