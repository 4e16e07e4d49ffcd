"""The flags of `python -m kimagenet.train`, and the recipe that they make."""

import argparse
import dataclasses
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_type_hints

from kimagenet import cli, models
from kimagenet.catalog import ListRecipes
from kimagenet.decoder_flags import add_decoder_flags
from kimagenet.inference import fine_tuning
from kimagenet.recipe import PRECISIONS, Recipe
from kimagenet.training.recovery import LIMIT, POLICIES
from pipelines import loaders
from pipelines.errors import UserError
from pipelines.loader import DEVICES, DTYPES

DEFAULT_DATASET_DIR = Path("~/data/ILSVRC2012/tfrecords")  # the original's

# The original's batch_size and iter_size where neither is given; for other models it demanded them.
ORIGINAL_BATCHES = {"mobilenet_v2": (64, 4), "resnet50": (16, 16), "googlenet_bn": (64, 4)}

DESCRIPTION = """Trains an image classifier on TFRecord shards. Without any argument, and without ImageNet in its
default place, it draws a small data set of its own and trains a small model on it."""
EPILOG = """Flags of the recipe that are not given keep its value. The recipe is the one of --recipe; else, for
a saved MODEL, the one of its run; else, for mobilenet_v2, resnet50 and googlenet_bn, the defaults of keras_imagenet's
train.py; else the model's own. A saved MODEL may be trained at another --image-size; its head is replaced if the data
set has another number of classes. The resolved recipe is printed and saved as recipe.json. Every flag also reads with
_ for -. Exit codes: 0 done, 1 failed, 2 wrong use, 75 stopped: the same command again goes on, 130 left at once."""
RUN = """On Ctrl-C or SIGTERM a run ends its step, writes a checkpoint and exits with 75; the same command again, or
--resume, goes on at the very next step. The second one, or one before the first step, leaves at once with 130; the
last checkpoint is good then as well. A full disk costs checkpoints, which is said, and not the run; lines of the logs
wait until there is room. Several machines: TF_CONFIG, or SLURM's variables under srun, and one --output that all of
them see; python -m tools.launch for a trial on one. If a worker is killed the others end with 75 within a minute;
--resume may go on with another number of them."""


def make_parser() -> cli.Parser:
    """The flags: a group of our own for the run, and the recipe's fields in their groups."""
    parser = cli.Parser("python -m kimagenet.train", "[MODEL] [flags]", DESCRIPTION, EPILOG)
    names = ", ".join(models.names())
    kinds_of_model = (
        f"one of {names}; or a .keras or .h5 file, or a run directory, to go on from; default: the recipe's"
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help=kinds_of_model)
    run = parser.add_argument_group("run", RUN)
    groups = {"run": run, "data": parser.add_argument_group("data")}
    _add_run_flags(run)
    data = groups["data"]
    data.add_argument("--dataset-dir", type=Path, metavar="DIR", help=f"folder of shards ({DEFAULT_DATASET_DIR})")
    data.add_argument(
        "--loader",
        choices=("auto", *loaders.names()),
        default="auto",
        help="what reads and augments (auto: dali where it works)",
    )
    data.add_argument("--strict-loader", action="store_true", help="an error, not tf.data, if DALI cannot be used")
    data.add_argument(
        "--data-device", choices=DEVICES, default="auto", help="where DALI decodes (auto: a GPU if there is one)"
    )
    data.add_argument(
        "--data-dtype", choices=DTYPES, default="float32", help="images on their way to the model (float32)"
    )
    data.add_argument(
        "--workers", type=cli.positive_int, metavar="N", help="decoding threads; default: one for each core"
    )
    data.add_argument("--prefetch", type=cli.positive_int, default=2, metavar="N", help="batches kept ready (2)")
    data.add_argument(
        "--on-corrupt",
        choices=POLICIES,
        default="stop",
        help="a record that cannot be decoded ends the run (the default), or is left out",
    )
    data.add_argument(
        "--max-corrupt", type=int, default=LIMIT, metavar="N", help=f"records that may be left out ({LIMIT})"
    )
    data.add_argument(
        "--data-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="seconds that a batch may take (600); 0 = for ever",
    )
    add_decoder_flags(parser)
    kinds = get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        if field.name != "model":
            group = field.metadata["group"]
            if group not in groups:
                groups[group] = parser.add_argument_group(group)
            _add_recipe_flag(groups[group], field, kinds[field.name])
    return parser


def _add_run_flags(run: argparse._ArgumentGroup) -> None:
    run.add_argument("--recipe", metavar="NAME|FILE", help=f"{', '.join(models.recipes())}, or a recipe.json")
    run.add_argument("--list-recipes", nargs=0, action=ListRecipes, help="print a table of the recipes and exit")
    run.add_argument("--output", type=Path, metavar="RUN", help="the run directory; default: runs/MODEL-TIME")
    run.add_argument(
        "--log-steps", type=cli.positive_int, default=50, metavar="N", help="steps from one log line to the next (50)"
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --output, which is needed, by its own recipe and data",
    )
    run.add_argument("--force-resume", action="store_true", help="--resume, although recipe or data are not the run's")
    run.add_argument(
        "--checkpoint-steps",
        type=cli.positive_int,
        default=1000,
        metavar="N",
        help="steps between checkpoints (1000); an epoch ends with one",
    )
    run.add_argument(
        "--keep-checkpoints", type=cli.positive_int, default=3, metavar="N", help="how many of them to keep (3)"
    )
    run.add_argument("--plot-schedule", type=Path, metavar="PNG", help="draw the learning rate into a picture and exit")


def _add_recipe_flag(group: Any, field: dataclasses.Field, kind: type) -> None:
    options: dict[str, Any] = {"help": field.metadata["help"].replace("%", "%%"), "default": argparse.SUPPRESS}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options |= {"type": kind, "choices": field.metadata["choices"]}
        if not options["choices"]:
            options["metavar"] = {int: "N", float: "X", str: "NAME"}[kind]
    group.add_argument("--" + field.name.replace("_", "-"), **options)


def with_values(arguments: Sequence[str]) -> list[str]:
    """Flags that read as switches too: the original's --label_smoothing means 0.1, --amp means float16."""
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


def resolve_recipe(flags: argparse.Namespace, is_demo: bool = False, of_run: Recipe | None = None) -> Recipe:
    """The base recipe (see EPILOG, or a run's) with the flags' changes."""
    changes = {f.name: vars(flags)[f.name] for f in dataclasses.fields(Recipe) if vars(flags).get(f.name) is not None}
    if changes.get("decoupled_weight_decay"):
        changes.setdefault("weight_decay", 0.0)  # who asks for the one does not want a default of the other
    if of_run and flags.model:
        changes["model"] = flags.model
    base = of_run if of_run and not flags.recipe else _base_recipe(flags.recipe, flags.model, is_demo)
    return base.replace(**changes)


def _base_recipe(name: str | None, model: str | None, is_demo: bool) -> Recipe:
    known = models.recipes()
    if name is None:
        model = model or ("demo" if is_demo else Recipe.model)
        if fine_tuning.is_saved(model):
            return fine_tuning.recipe_of(model)
        if model in ORIGINAL_BATCHES or model not in known:  # the caller reports an unknown model
            if model in known:
                print(
                    f"No --recipe: taking the defaults of keras_imagenet's train.py; its choices are --recipe {model}."
                )
            return _original_defaults(model)
        print(f"No --recipe: taking the one of {model}.")
        return known[model]
    if name.endswith(".json"):
        return Recipe.load(Path(name))
    if name not in known:
        raise UserError(f"{name}: no such recipe; the recipes are {', '.join(known)}")
    return known[name]


def _original_defaults(model: str) -> Recipe:
    batch_size, iter_size = ORIGINAL_BATCHES.get(model, (Recipe.batch_size, Recipe.iter_size))
    return Recipe(model=model, batch_size=batch_size, iter_size=iter_size, crop_ratio=1.0)
