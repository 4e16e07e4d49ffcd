"""A trained model that is to be used: which file it is, and what its run says of it. Imports Keras only to load."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kimagenet.inference.fine_tuning import check_probabilities
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines.errors import UserError, first_line
from pipelines.shards.dataset import DatasetInfo

if TYPE_CHECKING:
    import keras

    from kimagenet.cli import Parser

CHECKPOINTS = ("final", "best", "last")


@dataclass(frozen=True)
class Trained:
    """A model file, and what its run says of it.

    Attributes:
        crop_ratio, batch_size: of the recipe. dataset_dir: what it was trained on.
        classes, wnids: names and WordNet ids in label order, empty where nobody says.
        short_side: to which the builder shrank larger images, pixels; None: it did not.
    """

    model: Path
    crop_ratio: float = Recipe.crop_ratio
    batch_size: int = Recipe.batch_size
    dataset_dir: Path | None = None
    classes: tuple[str, ...] = ()
    wnids: tuple[str | None, ...] = ()
    short_side: int | None = None


def add_flags(parser: "Parser") -> None:
    """The flags that say which model is meant, and how its images are cut: see `find`."""
    add = parser.add_argument
    add("target", type=Path, metavar="RUN_OR_MODEL", help="a run directory of kimagenet.train, or a .keras or .h5 file")
    add("--checkpoint", choices=CHECKPOINTS, default="final", help="which model of the run; default: final")
    add("--crop-ratio", type=float, metavar="X", help="image size over the resized shorter side; default: the run's")


def find(path: Path, checkpoint: str = "final") -> Trained:
    """The model file that `path`, a run or a file, stands for. Raises `UserError` if there is none."""
    if path.is_dir():
        run = RunDirectory.existing(path)
        model = {"final": run.final, "best": run.best, "last": run.last}[checkpoint]
        if not model.is_file():
            there = [name for name, file in (("best", run.best), ("last", run.last)) if file.is_file()]
            hint = f"; take --checkpoint {' or '.join(there)}" if there else ""
            raise UserError(f"{model}: not there, the run has not come that far{hint}")
        return _of_run(model, run)
    if not path.is_file():
        raise UserError(f"{path}: no such run directory or model file")
    for folder in (path.parent, path.parent.parent):
        if (folder / "run.json").is_file():
            return _of_run(path, RunDirectory(folder))
    return Trained(path)


def _of_run(model: Path, run: RunDirectory) -> Trained:
    recipe, info = Recipe.load(run.recipe), run.read_info()
    return Trained(
        model,
        recipe.crop_ratio,
        recipe.batch_size,
        Path(info["dataset_dir"]),
        tuple(info["classes"]),
        tuple(info.get("wnids", ())),
        info.get("short_side"),
    )


def load(path: Path) -> "keras.Model":
    """A model file for inference; raises `UserError` if it is none, or not from square RGB images to [N, classes]."""
    import keras

    try:
        model = keras.models.load_model(path, compile=False)
    # Keras raises whatever a broken or foreign file provokes.
    except Exception as error:
        raise UserError(f"{path}: Keras cannot load it ({first_line(error)})") from None
    shape = model.input_shape
    if len(shape) != 4 or shape[1] is None or shape[1] != shape[2] or shape[3] != 3:
        raise UserError(f"{path}: takes inputs {shape}, not square RGB images")
    check_probabilities(model, path)
    return model


def class_names(trained: Trained, num_classes: int, dataset_dir: Path | None = None) -> tuple[str, ...]:
    """The names of the model's classes: of a data set, of its run, or else their numbers.

    Raises `UserError` if they are not as many as the model knows.
    """
    if dataset_dir is not None:
        names: tuple[str, ...] = tuple(info.name for info in DatasetInfo.load(dataset_dir).classes)
    else:
        names = trained.classes or tuple(str(number) for number in range(num_classes))
    if len(names) != num_classes:
        where = dataset_dir or trained.model.parent
        raise UserError(f"{trained.model}: knows {num_classes} classes, {where} names {len(names)}")
    return names
