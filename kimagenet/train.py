"""Trains a model: python -m kimagenet.train [MODEL] --loader dali --dataset-dir DIR --output RUN"""

import argparse
import dataclasses
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from kimagenet import cli, models, saved
from kimagenet.catalog import ListRecipes
from kimagenet.recipe import PRECISIONS, Recipe
from kimagenet.run import RunDirectory, save_model
from kimagenet.schedule import Schedule
from pipelines import loaders
from pipelines.augment import AugmentSpec
from pipelines.dataset import DatasetInfo
from pipelines.errors import UserError
from pipelines.loader import DEVICES, DTYPES, BatchSpec
from pipelines.shards import ShardSet

if TYPE_CHECKING:
    from kimagenet.distribute import Feed
    from kimagenet.loop import Loop

DEFAULT_DATASET_DIR = Path("~/data/ILSVRC2012/tfrecords")  # the original's

# The original's batch_size and iter_size where neither is given; for other models it demanded them.
ORIGINAL_BATCHES = {"mobilenet_v2": (64, 4), "resnet50": (16, 16), "googlenet_bn": (64, 4)}

DESCRIPTION = """Trains an image classifier on TFRecord shards. Without any argument, and without ImageNet in its
default place, it draws a small data set of its own and trains a small model on it."""
EPILOG = """Flags of the recipe that are not given keep its value. The recipe is the one of --recipe; else, for
a saved MODEL, the one of its run; else, for mobilenet_v2, resnet50 and googlenet_bn, the defaults of keras_imagenet's
train.py; else the model's own. A saved MODEL may be trained at another --image-size; its head is replaced if the data
set has another number of classes. The resolved recipe is printed and saved as recipe.json. Every flag also reads with
_ for -. Exit codes: 0 done, 2 wrong use, 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = cli.with_hyphens(sys.argv[1:] if arguments is None else arguments)
    return cli.run(make_parser(), train, _with_values(given))


def make_parser() -> cli.Parser:
    """The flags: a group of our own for the run, and the recipe's fields in their groups."""
    parser = cli.Parser("python -m kimagenet.train", "[MODEL] [flags]", DESCRIPTION, EPILOG)
    names = ", ".join(models.names())
    kinds_of_model = (
        f"one of {names}; or a .keras or .h5 file, or a run directory, to go on from; default: the recipe's"
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help=kinds_of_model)
    groups = {name: parser.add_argument_group(name) for name in ("run", "data")}
    run = groups["run"]
    run.add_argument("--recipe", metavar="NAME|FILE", help=f"{', '.join(models.recipes())}, or a recipe.json")
    run.add_argument("--list-recipes", nargs=0, action=ListRecipes, help="print a table of the recipes and exit")
    run.add_argument("--output", type=Path, metavar="RUN", help="the run directory; default: runs/MODEL-TIME")
    run.add_argument(
        "--log-steps", type=cli.positive_int, default=50, metavar="N", help="steps from one log line to the next"
    )
    data = groups["data"]
    data.add_argument("--dataset-dir", type=Path, metavar="DIR", help=f"folder of shards ({DEFAULT_DATASET_DIR})")
    data.add_argument("--loader", choices=("auto", *loaders.names()), default="auto", help="what reads and augments")
    data.add_argument("--strict-loader", action="store_true", help="an error, not tf.data, if DALI cannot be used")
    data.add_argument("--data-device", choices=DEVICES, default="auto", help="where DALI decodes")
    data.add_argument("--data-dtype", choices=DTYPES, default="float32", help="images on their way to the model")
    data.add_argument(
        "--workers", type=cli.positive_int, metavar="N", help="decoding threads; default: one for each core"
    )
    data.add_argument("--prefetch", type=cli.positive_int, default=2, metavar="N", help="batches kept ready")
    kinds = get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        if field.name != "model":
            group = field.metadata["group"]
            if group not in groups:
                groups[group] = parser.add_argument_group(group)
            _add_recipe_flag(groups[group], field, kinds[field.name])
    return parser


def _add_recipe_flag(group: Any, field: dataclasses.Field, kind: type) -> None:
    options: dict[str, Any] = {"help": field.metadata["help"].replace("%", "%%"), "default": argparse.SUPPRESS}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options |= {"type": kind, "choices": field.metadata["choices"]}
        if not options["choices"]:
            options["metavar"] = {int: "N", float: "X", str: "NAME"}[kind]
    group.add_argument("--" + field.name.replace("_", "-"), **options)


def _with_values(arguments: Sequence[str]) -> list[str]:
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


def train(flags: argparse.Namespace) -> None:
    """A whole run, from the flags to final.keras. Raises `UserError` before anything is trained or overwritten."""
    dataset_dir, is_demo = find_dataset(flags.dataset_dir)
    recipe = resolve_recipe(flags, is_demo)
    if saved.is_saved(recipe.model):
        recipe = recipe.replace(model=str(saved.find(recipe.model)))
    elif recipe.model not in models.names():
        raise UserError(f"{recipe.model}: no such model; the models are {', '.join(models.names())}")
    default_output = Path("runs") / f"{Path(recipe.model).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = RunDirectory.new(flags.output or default_output)
    if is_demo:
        from kimagenet.demo import ensure_demo

        print("No --dataset-dir, and no ImageNet in its default place: training on a small drawn data set instead.")
        dataset_dir = ensure_demo()
    splits = open_splits(dataset_dir)
    print_recipe(recipe)
    cli.import_tensorflow()
    _set_up_keras(recipe)
    with ExitStack() as stack:
        training, validation = open_feeds(stack, flags, recipe, *splits)
        loop = build_loop(recipe, training, validation, flags.log_steps)
        print_banner(recipe, dataset_dir, loop, run)
        run.begin(recipe, describe_run(dataset_dir, loop))
        fit(loop, recipe, run)
    print(f"done: {run.final}; evaluate it with `{cli.python()} -m kimagenet.evaluate {run.path}`")


def find_dataset(given: Path | None) -> tuple[Path, bool]:
    """The folder of shards, and whether there is none, so that the demo has to stand in."""
    dataset_dir = (given or DEFAULT_DATASET_DIR).expanduser()
    return dataset_dir, given is None and not dataset_dir.exists()


def resolve_recipe(flags: argparse.Namespace, is_demo: bool = False) -> Recipe:
    """The base recipe (see EPILOG) with the flags' changes."""
    changes = {f.name: vars(flags)[f.name] for f in dataclasses.fields(Recipe) if vars(flags).get(f.name) is not None}
    if changes.get("decoupled_weight_decay"):
        changes.setdefault("weight_decay", 0.0)  # who asks for the one does not want a default of the other
    return _base_recipe(flags.recipe, flags.model, is_demo).replace(**changes)


def _base_recipe(name: str | None, model: str | None, is_demo: bool) -> Recipe:
    known = models.recipes()
    if name is None:
        model = model or ("demo" if is_demo else Recipe.model)
        if saved.is_saved(model):
            return saved.recipe_of(model)
        if model in ORIGINAL_BATCHES or model not in known:  # the caller reports an unknown model
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


def _set_up_keras(recipe: Recipe) -> None:
    import keras

    keras.utils.set_random_seed(recipe.seed)
    keras.mixed_precision.set_global_policy("float32" if recipe.amp == "off" else f"mixed_{recipe.amp}")


def open_splits(dataset_dir: Path) -> tuple[ShardSet, ShardSet | None]:
    """The shards for training and, where the data set has them, for validation."""
    has_validation = "validation" in DatasetInfo.load(dataset_dir).splits
    return ShardSet.open(dataset_dir, "train"), ShardSet.open(dataset_dir, "validation") if has_validation else None


def open_feeds(
    stack: ExitStack,
    flags: argparse.Namespace,
    recipe: Recipe,
    training_shards: ShardSet,
    validation_shards: ShardSet | None,
) -> "tuple[Feed, Feed | None]":
    """What reads the two splits for all the devices; `stack` closes it."""
    from kimagenet.distribute import choose_strategy, open_feed

    strategy = choose_strategy()
    batch = BatchSpec(recipe.batch_size, recipe.image_size, flags.data_dtype)
    options = {
        "seed": recipe.seed,
        "workers": flags.workers,
        "prefetch": flags.prefetch,
        "device": flags.data_device,
        "strict": flags.strict_loader,
    }
    augment = AugmentSpec.named(recipe.augment)
    training = stack.enter_context(open_feed(strategy, flags.loader, training_shards, batch, augment, **options))
    if validation_shards is None:
        return training, None
    # By the name of the loader that was opened: a fallback is announced once.
    chosen, evaluation = training.loaders[0].name, AugmentSpec.evaluation(recipe.crop_ratio)
    feed = open_feed(strategy, chosen, validation_shards, batch, evaluation, **options)
    return training, stack.enter_context(feed)


def build_loop(recipe: Recipe, training: "Feed", validation: "Feed | None", log_steps: int) -> "Loop":
    """Model, optimizer and schedule of a recipe, in the strategy's scope."""
    from kimagenet import optim
    from kimagenet.loop import Loop
    from kimagenet.mixing import MixSpec

    with training.strategy.scope():
        network = (training.shards.num_classes, recipe.image_size, recipe.dropout_rate)
        is_saved = saved.is_saved(recipe.model)
        model = saved.build(Path(recipe.model), *network) if is_saved else models.build(recipe.model, *network)
        optimizer = optim.build(recipe)
    return Loop(
        model,
        optimizer,
        training,
        validation,
        schedule=Schedule.of(recipe),
        weight_decay=recipe.weight_decay,
        label_smoothing=recipe.label_smoothing,
        mixing=MixSpec.of(recipe),
        seed=recipe.seed,
        xla=recipe.xla,
        ema=recipe.ema > 0,
        log_steps=log_steps,
    )


def fit(loop: "Loop", recipe: Recipe, run: RunDirectory) -> None:
    """Trains and leaves the run directory complete; on Ctrl-C as well, up to the step that was reached."""
    from kimagenet.checkpoints import KeepLastAndBest
    from kimagenet.log import JsonLines, ProgressLine, TensorBoardScalars

    callbacks = [
        ProgressLine(loop, recipe.epochs),
        JsonLines(loop, run.log, recipe.epochs),
        TensorBoardScalars(loop, run.tensorboard),
        KeepLastAndBest(loop, run),
    ]
    try:
        loop.fit(recipe.epochs, callbacks)
    except KeyboardInterrupt:
        with loop.evaluation_weights():
            save_model(loop.model, run.last)
        done = f"after {loop.global_step} of {recipe.epochs * loop.steps_per_epoch} steps"
        raise KeyboardInterrupt(f"{done}; the weights so far are in {run.last}") from None
    save_model(loop.model, run.final)


def describe_run(dataset_dir: Path, loop: "Loop") -> dict[str, Any]:
    """The content of run.json."""
    import keras
    import tensorflow as tf

    feeds = [feed for feed in (loop.training, loop.validation) if feed]
    return {
        "dataset_dir": os.path.abspath(dataset_dir),
        "records": {feed.shards.split: len(feed.shards.usable) for feed in feeds},
        "classes": list(loop.training.shards.classes),
        "loader": loop.training.description,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__, "python": sys.version.split()[0]},
    }


def print_recipe(recipe: Recipe) -> None:
    """All fields, `name=value`."""
    pairs = " ".join(f"{name}={value}" for name, value in dataclasses.asdict(recipe).items())
    print(textwrap.fill(f"recipe  {pairs}", 118, subsequent_indent=" " * 8, break_on_hyphens=False))


def print_banner(recipe: Recipe, dataset_dir: Path, loop: "Loop", run: RunDirectory) -> None:
    """What is about to be done, in numbers."""
    training, validation = loop.training, loop.validation
    records = f"{len(training.shards.usable):,} train"
    records += f", {len(validation.shards.usable):,} validation" if validation else ", no validation split"
    left_out = f" ({training.dropped_records} records left out, others each time)" if training.dropped_records else ""
    print(f"data    {dataset_dir}: {records} records, {training.shards.num_classes} classes")
    steps = f"{training.steps_per_epoch:,} steps of {training.global_batch} per epoch"
    print(f"loader  {training.description}: {steps}{left_out}")
    print(f"model   {recipe.model}: {loop.model.count_params():,} parameters, {recipe.image_size} px")
    print(f"run     {run.path}: {recipe.epochs} epochs, {recipe.epochs * training.steps_per_epoch:,} steps", flush=True)


if __name__ == "__main__":
    sys.exit(main())
