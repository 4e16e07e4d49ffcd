"""Exact accuracy of a trained model: python -m kimagenet.evaluate RUN_OR_MODEL --dataset-dir DIR"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kimagenet import cli
from kimagenet.recipe import Recipe
from kimagenet.run import RunDirectory
from pipelines import loaders
from pipelines.errors import UserError, first_line
from pipelines.files import write_atomic
from pipelines.loader import DEVICES

if TYPE_CHECKING:
    import keras

    from kimagenet.loop import Evaluation

EVALUATION_VERSION = 1
CHECKPOINTS = ("final", "best", "last")

DESCRIPTION = """Top-1 and top-5 over every record of a split, each counted once. A record counts as right in top-k if
fewer than k classes stand before its own; of equally probable classes the lower number stands first."""


@dataclass(frozen=True)
class Target:
    """What is evaluated: a model file, and what its run says of it."""

    model: Path
    crop_ratio: float
    batch_size: int
    dataset_dir: Path | None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), evaluate, arguments)


def make_parser() -> cli.Parser:
    """The flags."""
    parser = cli.Parser("python -m kimagenet.evaluate", "RUN_OR_MODEL [flags]", DESCRIPTION)
    add = parser.add_argument
    add("target", type=Path, metavar="RUN_OR_MODEL", help="a run directory of kimagenet.train, or a .keras file")
    add("--dataset-dir", type=Path, metavar="DIR", help="folder of shards; default: the run's")
    add("--split", default="validation", help="default: validation")
    add("--checkpoint", choices=CHECKPOINTS, default="final", help="which model of the run; default: final")
    add("--crop-ratio", type=float, metavar="X", help="image size over the resized shorter side; default: the run's")
    add("--loader", choices=("auto", *loaders.names()), default="auto", help="what reads; default: auto")
    add("--data-device", choices=DEVICES, default="auto", help="where DALI decodes")
    add("--workers", type=cli.positive_int, metavar="N", help="decoding threads; default: one for each core")
    add(
        "--batch-size",
        type=cli.positive_int,
        metavar="N",
        help="images at a time, no influence on the result; default: the run's",
    )
    add("--json", type=Path, metavar="FILE", help="write the result there as well")
    return parser


def evaluate(flags: argparse.Namespace) -> None:
    """Prints, and on request writes, the accuracy. Raises `UserError` if model and data do not fit."""
    target = find_target(flags.target, flags.checkpoint)
    dataset_dir = flags.dataset_dir or target.dataset_dir
    if dataset_dir is None:
        raise UserError(f"{flags.target}: not in a run directory, so --dataset-dir is needed")
    crop_ratio = target.crop_ratio if flags.crop_ratio is None else flags.crop_ratio
    batch_size = target.batch_size if flags.batch_size is None else flags.batch_size
    cli.import_tensorflow()
    result = measure(target.model, dataset_dir, crop_ratio, batch_size, flags)
    print(f"{target.model} on {result.records:,} {flags.split} records, crop ratio {crop_ratio:g}")
    print(f"top-1 {result.top1:.4%} ({result.top1_correct:,})  top-5 {result.top5:.4%} ({result.top5_correct:,})")
    print(f"cross-entropy {result.loss:.6f}")
    if flags.json:
        write_json(flags.json, result, target.model, dataset_dir, flags.split, crop_ratio)


def find_target(path: Path, checkpoint: str = "final") -> Target:
    """The model file that `path`, a run or a .keras file, stands for. Raises `UserError` if there is none."""
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
    return Target(path, Recipe.crop_ratio, Recipe.batch_size, None)


def _of_run(model: Path, run: RunDirectory) -> Target:
    recipe = Recipe.load(run.recipe)
    return Target(model, recipe.crop_ratio, recipe.batch_size, Path(run.read_info()["dataset_dir"]))


def measure(
    model_path: Path, dataset_dir: Path, crop_ratio: float, batch_size: int, flags: argparse.Namespace
) -> "Evaluation":
    """Loads the model and counts."""
    from kimagenet import loop
    from kimagenet.distribute import choose_strategy, open_feed
    from kimagenet.steps import make_evaluation_step
    from pipelines.augment import AugmentSpec
    from pipelines.loader import BatchSpec
    from pipelines.shards import ShardSet

    shards = ShardSet.open(dataset_dir, flags.split)
    strategy = choose_strategy()
    with strategy.scope():
        model = load_model(model_path)
    if (known := model.output_shape[-1]) != shards.num_classes:
        raise UserError(f"{model_path}: knows {known} classes, the data set in {dataset_dir} has {shards.num_classes}")
    feed = open_feed(
        strategy,
        flags.loader,
        shards,
        BatchSpec(batch_size, model.input_shape[1]),
        AugmentSpec.evaluation(crop_ratio),
        workers=flags.workers,
        device=flags.data_device,
    )
    with feed:
        return loop.evaluate(make_evaluation_step(model, strategy), feed)


def load_model(path: Path) -> "keras.Model":
    """A .keras file for inference; raises `UserError` if it is none or takes no square RGB images."""
    import keras

    try:
        model = keras.models.load_model(path, compile=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: Keras cannot load it ({first_line(error)})") from None
    shape = model.input_shape
    if len(shape) != 4 or shape[1] is None or shape[1] != shape[2] or shape[3] != 3:
        raise UserError(f"{path}: takes inputs {shape}, not square RGB images")
    return model


def write_json(path: Path, result: "Evaluation", model: Path, dataset_dir: Path, split: str, crop_ratio: float) -> None:
    """The result as JSON: `version`, what was evaluated on what, `records`, counts and shares."""
    content: dict[str, Any] = {
        "version": EVALUATION_VERSION,
        "model": str(model),
        "dataset_dir": str(dataset_dir),
        "split": split,
        "crop_ratio": crop_ratio,
        "records": result.records,
        "top1": result.top1,
        "top5": result.top5,
        "top1_correct": result.top1_correct,
        "top5_correct": result.top5_correct,
        "loss": result.loss if math.isfinite(result.loss) else None,  # JSON knows no NaN
    }
    try:
        write_atomic(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


if __name__ == "__main__":
    sys.exit(main())
