"""Finds a trained model, loads it, and reads what its run knows about it. Imports Keras only to load."""

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kimagenet.cli import Parser, positive_int
from kimagenet.inference.class_match import Classes, numbers_in_model
from kimagenet.recipe import INPUT_RANGES, Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines.errors import UserError, did_you_mean, first_line
from pipelines.shards.dataset import DatasetInfo

if TYPE_CHECKING:
    import keras

_log = logging.getLogger(__name__)

CHECKPOINTS = ("final", "best", "last")


@dataclass(frozen=True)
class Trained:
    """A model file, and what its run knows about it.

    Attributes:
        model: the file.
        crop_ratio: of the recipe.
        batch_size: of the recipe.
        dataset_dir: the data set it was trained on, or None.
        classes: names in label order, empty if they are not known.
        wnids: WordNet ids in label order, empty if they are not known.
        short_side: the shorter side that the builder shrank larger images to, pixels; None: it did not.
        input_range: as for `load`.
        image_size: as for `load`.
    """

    model: Path
    crop_ratio: float = Recipe.crop_ratio
    batch_size: int = Recipe.batch_size
    dataset_dir: Path | None = None
    classes: tuple[str, ...] = ()
    wnids: tuple[str | None, ...] = ()
    short_side: int | None = None
    input_range: str = "auto"
    image_size: int | None = None

    def load(self) -> "keras.Model":
        """Loads it for inference, as `load`."""
        return load(self.model, self.input_range, self.image_size)

    @property
    def known(self) -> Classes:
        """The names and wnids of its classes."""
        return Classes(self.classes, self.wnids)


def add_flags(parser: Parser) -> None:
    """Adds the flags that choose a model and the crop of its images: the arguments of `find`."""
    add = parser.add_argument
    add("target", type=Path, metavar="RUN_OR_MODEL", help="a run directory of kimagenet.train, or a .keras or .h5 file")
    add("--checkpoint", choices=CHECKPOINTS, default="final", help="which model of the run; default: final")
    add("--crop-ratio", type=float, metavar="X", help="image size over the resized shorter side; default: the run's")
    text = "what a model of others takes, as for kimagenet.train; default: found by its first layers"
    add("--input-range", choices=INPUT_RANGES, default="auto", help=text)
    text = f"pixels of a side, for a model that takes any size; default: {Recipe.image_size}"
    add("--image-size", type=positive_int, metavar="N", help=text)


def find_model(path: Path, checkpoint: str | None = None) -> Path:
    """Finds the model file that a run or a path means.

    Args:
        path: a run directory, or a model file.
        checkpoint: which model of a run, one of `CHECKPOINTS`; None: final, or last if the run is not finished.

    Returns:
        The file; `path` itself if it is a file.

    Raises:
        UserError: there is no such file.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        beside = (str(other) for other in path.parent.glob("*"))
        raise UserError("no such run directory or model file", path=path, remedy=did_you_mean(str(path), beside))
    run = RunDirectory.existing(path)
    files = {"final": run.final, "best": run.best, "last": run.last}
    there = [name for name in CHECKPOINTS if files[name].is_file()]
    wanted = checkpoint or ("final" if "final" in there else "last")
    if wanted not in there:
        remedy = f"choose {' or '.join(there)}" if there else ""
        setting = "checkpoint" if there else ""
        raise UserError("not written yet, the run is not finished", path=files[wanted], remedy=remedy, setting=setting)
    return files[wanted]


def run_of(model: Path) -> RunDirectory | None:
    """The run that a model file is in, if there is one."""
    found = (RunDirectory(folder) for folder in (model.parent, model.parent.parent))
    return next((run for run in found if run.is_begun), None)


def find(path: Path, checkpoint: str = "final") -> Trained:
    """Finds a model as `find_model` does, with what its run knows about it. Raises `UserError` if there is none."""
    model = find_model(path, checkpoint)
    if (run := run_of(model)) is None:
        return Trained(model)
    recipe, info = Recipe.load(run.recipe), run.read_info(dataset_dir=str, classes=list)
    for name, meaning in (("wnids", "classes are compared by name only"), ("short_side", "images keep their size")):
        if name not in info:
            _log.warning("%s: lacks %s, so %s", run.info, name, meaning)
    return Trained(
        model,
        recipe.crop_ratio,
        recipe.batch_size,
        Path(info["dataset_dir"]),
        tuple(info["classes"]),
        tuple(info.get("wnids", ())),
        info.get("short_side"),
    )


def chosen(flags: argparse.Namespace) -> Trained:
    """The model that the flags of `add_flags` choose. Raises `UserError` if there is none."""
    found = find(flags.target, flags.checkpoint)
    return replace(found, input_range=flags.input_range, image_size=flags.image_size)


def load(path: Path, input_range: str = "auto", image_size: int | None = None) -> "keras.Model":
    """Loads a model file for inference.

    Args:
        path: the file.
        input_range: what the model takes, a name of `kimagenet.networks.input_range.RANGES`; "auto": found.
        image_size: pixels of a side of its images, if it takes any size; None: `Recipe.image_size`.

    Returns:
        A model of square RGB images that returns probabilities [N, classes].

    Raises:
        UserError: the file is not such a model.
    """
    import keras

    from kimagenet.networks.input_range import decide, find_range, with_range
    from kimagenet.networks.rebuild import rebuilt

    try:
        model = keras.models.load_model(path, compile=False)
    # Keras raises any exception for a broken or foreign file.
    except Exception as error:
        raise UserError(f"Keras cannot load it ({first_line(error)})", path=path) from None
    check_input(model, path)
    found, shape = find_range(model), model.input_shape
    if shape[1:3] == (None, None):
        size = image_size or Recipe.image_size
        try:
            model = rebuilt(model, size)
        # Layers raise any exception for a size that they do not take.
        except Exception as error:
            what = f"does not work at {size} pixels ({first_line(error)})"
            raise UserError(what, path=path, setting="image_size") from None
        if image_size is None:
            _log.warning("%s: takes images of any size; it gets %d pixels (image_size)", path, Recipe.image_size)
    elif shape[1] is None or shape[1] != shape[2]:
        raise UserError(f"takes inputs of shape {shape}, not square RGB images", path=path)
    elif image_size not in (None, shape[1]):
        what = f"takes images of {shape[1]} pixels, not {image_size}"
        raise UserError(what, path=path, remedy="leave it out", setting="image_size")
    model = with_range(model, decide(model, input_range, found, path, is_ours=run_of(path) is not None))
    check_probabilities(model, path)
    return model


def check_input(model: "keras.Model", path: Path | str) -> None:
    """Checks that a model has one input, RGB images.

    Args:
        model: the model.
        path: its file, for the message.

    Raises:
        UserError: it does not.
    """
    try:
        shapes = [tensor.shape for tensor in model.inputs]
    except (AttributeError, TypeError, ValueError):  # a model of no graph has no inputs before it is called
        shapes = []
    if not shapes:
        remedy = "let it begin with keras.Input((height, width, 3))"
        raise UserError("a model without a graph, so its input is not known", path=path, remedy=remedy)
    if len(shapes) > 1 or len(shapes[0]) != 4 or shapes[0][3] != 3:
        shown = shapes[0] if len(shapes) == 1 else shapes
        raise UserError(f"takes inputs of shape {shown}, not square RGB images", path=path)


def check_probabilities(model: "keras.Model", path: Path | str) -> None:
    """Checks that a model of square RGB images returns probabilities, or NaN, for a grey image.

    Args:
        model: the model.
        path: its file, for the message.

    Raises:
        UserError: it does not.
    """
    answer = model(np.zeros((1, *model.input_shape[1:]), np.float32), training=False)
    if isinstance(answer, dict | list | tuple) or len(answer.shape) != 2:
        raise UserError(f"its outputs have the shape {model.output_shape}, not one probability per class", path=path)
    answer = np.asarray(answer, np.float64)
    if answer.min() < 0 or abs(answer.sum() - 1) > 0.01:
        remedy = "end it with a softmax, for example keras.Sequential([model, keras.layers.Softmax()])"
        raise UserError("its outputs are not probabilities", path=path, remedy=remedy)


def class_names(trained: Trained, num_classes: int, dataset_dir: Path | None = None) -> tuple[str, ...]:
    """The names of a model's classes, in its order: from a data set, from its run, or else their numbers.

    Args:
        trained: the model.
        num_classes: how many classes it has.
        dataset_dir: a data set that names them; None: the run names them.

    Raises:
        UserError: the number of names is not `num_classes`, or the data set has other classes than the run.
    """
    data = None if dataset_dir is None else Classes.of(DatasetInfo.load(dataset_dir))
    names = data.names if data else trained.classes or [str(number) for number in range(num_classes)]
    if len(names) != num_classes:
        where = dataset_dir or trained.model.parent
        raise UserError(f"predicts {num_classes} classes, but {where} names {len(names)}", path=trained.model)
    if data and dataset_dir and len(trained.classes) == num_classes:
        numbers = numbers_in_model(trained.known, data, trained.model, dataset_dir)
        names = [name for _, name in sorted(zip(numbers.tolist(), names, strict=True))]
    return tuple(names)
