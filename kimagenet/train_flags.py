"""The flags of `python -m kimagenet.train`. What they mean together is decided in `kimagenet.train_settings`."""

import argparse
import dataclasses
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_type_hints

from kimagenet import augmentation, cli, models
from kimagenet.catalog import ListRecipes
from kimagenet.decoder_flags import add_decoder_flags
from kimagenet.recipe import PRECISIONS, Recipe
from kimagenet.training.recovery import LIMIT, POLICIES
from pipelines import loaders
from pipelines.loader import DEVICES, DTYPES

DEFAULT_DATASET_DIR = Path("~/data/ILSVRC2012/tfrecords")  # the original's

DESCRIPTION = """Trains an image classifier on TFRecord shards. Without any argument it trains on ImageNet in its
default place. If ImageNet is not there, it generates a small data set and trains a small model on it."""
EPILOG = """The recipe is the one of --recipe. Without --recipe it is chosen for the number of training records and for
new or trained weights; the first lines of the run say what and why. From half a million records on, a new model has its
own recipe; demo always has. A command with the seven flags of keras_imagenet's train_new.sh trains as there. Flags
change single fields of the recipe. The result is printed and saved as recipe.json. A saved MODEL can be trained at
another --image-size; its head is replaced if the data set has another number of classes. Every flag can be written
with _ instead of -. Exit codes: 0 done, 1 failed, 2 wrong use, 75 stopped (--resume continues the run), 130
interrupted without a new checkpoint."""
RUN = """On Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 a run finishes its step, writes a checkpoint and exits with 75. --resume,
or the same command if it has --output, continues at the next step. A second Ctrl-C or SIGTERM, or a Ctrl-C before the
first step, exits at once with 130; the last checkpoint stays good. If the disk is full, the run continues without
checkpoints, with a warning, and log lines wait until there is room. For several machines set TF_CONFIG, or start the
command with srun under SLURM, and give all of them one --output that they share; tools.launch in the repository tries
this on one machine. If a worker is killed, the others exit with 75 within a minute. --resume also works with another
number of workers."""


def make_parser() -> cli.Parser:
    """The flags: those of the run and of the data, and the recipe's fields in their groups."""
    parser = cli.Parser("python -m kimagenet.train", "[MODEL] [flags]", DESCRIPTION, EPILOG)
    names = ", ".join(models.names())
    kinds_of_model = f"""one of {names}; keras:NAME, a network of keras.applications; a .keras or .h5 file or a run
        directory to start from; or your function as module:function; default: the recipe's"""
    parser.add_argument("model", nargs="?", metavar="MODEL", help=kinds_of_model)
    groups = {"run": parser.add_argument_group("run", RUN), "data": parser.add_argument_group("data")}
    _add_run_flags(groups["run"])
    _add_data_flags(groups["data"])
    add_decoder_flags(parser)
    kinds = get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        if field.name != "model":
            group = field.metadata["group"]
            if group not in groups:
                groups[group] = parser.add_argument_group(group)
            _add_recipe_flag(groups[group], field, kinds[field.name])
    _add_augmentation_flags(parser)
    return parser


def _add_run_flags(run: argparse._ArgumentGroup) -> None:
    add = run.add_argument
    add("--recipe", metavar="NAME|FILE|RUN", help="a name of --list-recipes, original, a recipe.json or a run")
    add("--list-recipes", nargs=0, action=ListRecipes, help="print a table of the recipes and exit")
    add("--output", type=Path, metavar="RUN", help="the run directory; default: runs/MODEL-TIME")
    add("--log-steps", type=cli.positive_int, default=50, metavar="N", help="steps between two log lines (50)")
    add("--resume", action="store_true", help="continue the run in --output with its recipe and data")
    add("--force-resume", action="store_true", help="--resume even if the recipe or the data have changed")
    add(
        "--checkpoint-steps",
        type=cli.positive_int,
        default=1000,
        metavar="N",
        help="steps between checkpoints (1000); each epoch ends with one, too",
    )
    add("--validate-every", type=cli.positive_int, default=1, metavar="N", help="epochs between validations (1)")
    text = "a Keras callback of yours: a class, or a function that returns one; may be repeated"
    add("--callback", action="append", default=[], metavar="MODULE:NAME", help=text)
    text = "print the accuracy of each class at the end; default: with --class-weights or --sampling balanced"
    add("--per-class", action=argparse.BooleanOptionalAction, help=text)
    add("--keep-checkpoints", type=cli.positive_int, default=3, metavar="N", help="how many checkpoints to keep (3)")
    add("--plot-schedule", type=Path, metavar="PNG", help="plot the learning rate into a PNG file and exit")


def _add_data_flags(data: argparse._ArgumentGroup) -> None:
    add = data.add_argument
    add("--dataset-dir", type=Path, metavar="DIR", help=f"folder of shards ({DEFAULT_DATASET_DIR})")
    add(
        "--loader",
        choices=("auto", *loaders.names()),
        default="auto",
        help="what reads and augments images (auto: dali if it works, else tfdata)",
    )
    add("--strict-loader", action="store_true", help="fail if DALI cannot be used, instead of taking tfdata")
    add("--data-device", choices=DEVICES, default="auto", help="where DALI decodes (auto: a GPU if there is one)")
    add("--data-dtype", choices=DTYPES, default="float32", help="type of the images that the loader makes (float32)")
    cli.add_decoding_threads(data)
    add("--prefetch", type=cli.positive_int, default=2, metavar="N", help="batches kept ready (2)")
    add(
        "--on-corrupt",
        choices=POLICIES,
        default="stop",
        help="what to do about a record that cannot be decoded: stop the run (the default), or skip the record",
    )
    add(
        "--max-corrupt",
        type=int,
        metavar="N",
        help=f"stop after skipping more than N records ({LIMIT})",
    )
    add(
        "--data-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="stop if a batch takes longer than S seconds (600); 0 = no limit",
    )


_ALIASES = {"initial_lr": ["--lr"]}


def _add_recipe_flag(group: argparse._ArgumentGroup, field: dataclasses.Field, kind: type) -> None:
    options: dict[str, Any] = {"help": field.metadata["help"].replace("%", "%%"), "default": argparse.SUPPRESS}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        choices = None if field.metadata["is_extensible"] else field.metadata["choices"]
        options |= {"type": kind, "choices": choices}
        if not choices:
            options["metavar"] = field.metadata["metavar"] or {int: "N", float: "X", str: "NAME"}[kind]
    flag = "--" + field.name.replace("_", "-")
    group.add_argument(flag, *_ALIASES.get(field.name, ()), dest=field.name, **options)


# By name of a flag: its help. Each changes a field of `AugmentSpec`.
_AUGMENTATION = {
    "crop_area": "share of the image's area that the crop takes, such as 0.35 1",
    "crop_aspect": "width / height of the crop, such as 0.75 1.33",
    "flip": "probability of a horizontal flip",
    "rotation": "largest rotation in degrees, in either direction",
    "rotation_probability": "how often an image is rotated at all; 1 if --augment never rotates",
    "brightness": "largest shift in either direction, as a share of full scale",
    "contrast": "factor about middle grey, such as 0.8 1.2",
    "saturation": "factor, such as 0.5 1.5",
    "hue": "largest rotation of the hue in degrees, in either direction",
}


def _add_augmentation_flags(parser: argparse.ArgumentParser) -> None:
    about = "They change --augment. `tools.preview --augment` shows the result."
    group = parser.add_argument_group("augmentation", about)
    for name, operation in augmentation.changeable().items():
        is_range = isinstance(operation.neutral, tuple)
        options: dict[str, Any] = {"nargs": 2, "metavar": ("LOW", "HIGH")} if is_range else {"metavar": "X"}
        group.add_argument(f"--{name.replace('_', '-')}", type=float, help=_AUGMENTATION[name], **options)


def augmentation_changes(flags: argparse.Namespace) -> dict[str, Any]:
    """The fields of `AugmentSpec` that the flags change, for `augmentation.with_changes`."""
    given = {name: getattr(flags, name) for name in augmentation.changeable()}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None}


# What --resume takes from the run, or what it does not need to continue as before.
_NOT_REPEATED = {"model", "recipe", "output", "resume", "force_resume", "dataset_dir", "loader", "plot_schedule"}


def to_resume(flags: argparse.Namespace) -> list[str]:
    """The flags that --resume needs to continue as this command, because no file of the run has them.

    Args:
        flags: what `make_parser()` parsed.
    """
    parser = make_parser()
    of_recipe = {*(field.name for field in dataclasses.fields(Recipe)), *augmentation.changeable()}
    repeated = []
    for action in parser._actions:
        default = parser.get_default(action.dest)
        value = getattr(flags, action.dest, default)
        if value == default or action.dest in of_recipe | _NOT_REPEATED:
            continue
        flag = action.option_strings[value is False]  # of a flag with --no-X, that is the second form
        values = value if isinstance(value, list) else [value]
        repeated += [flag if isinstance(part, bool) else f"{flag}={part}" for part in values]
    return repeated


def with_values(arguments: Sequence[str]) -> list[str]:
    """Adds the values of two flags that also work without one: --label-smoothing means 0.1, --amp means float16."""
    completed = []
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument == "--label-smoothing" and not _is_number(following):
            argument = "--label-smoothing=0.1"
        if argument == "--amp" and following not in PRECISIONS:
            argument = "--amp=float16"
        completed.append(argument)
    return completed


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
