"""Trains a model: python -m kimagenet.train [MODEL] --loader dali --dataset-dir DIR --output RUN"""

import argparse
import dataclasses
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kimagenet import cli, models
from kimagenet.decoder_flags import decoder_options
from kimagenet.inference import fine_tuning
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from kimagenet.runs.identity import check_same, identity
from kimagenet.schedule import plot
from kimagenet.train_flags import DEFAULT_DATASET_DIR, make_parser, resolve_recipe, with_values
from kimagenet.training.cluster import Cluster
from kimagenet.training.recovery import CorruptRecords
from pipelines import loaders
from pipelines.augment import AugmentSpec
from pipelines.errors import UserError
from pipelines.loader import BatchSpec
from pipelines.shards.dataset import DatasetInfo
from pipelines.shards.shard_set import ShardSet

if TYPE_CHECKING:
    from kimagenet.training.feed import Feed
    from kimagenet.training.loop import Loop


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = cli.with_hyphens(sys.argv[1:] if arguments is None else arguments)
    return cli.run(make_parser(), train, with_values(given))


def train(flags: argparse.Namespace) -> int:
    """A whole run, from the flags to final.keras, or the rest of one; returns the exit code.

    Raises `UserError` before anything is trained or overwritten.
    """
    flags.resume |= flags.force_resume
    cluster = Cluster.from_environment()
    if not cluster.is_chief:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  one of them speaks, to the end of the process
    run = find_run(flags, cluster)
    dataset_dir, is_demo = find_dataset(flags, run)
    recipe = find_recipe(flags, run, is_demo)
    if flags.plot_schedule:
        plot(recipe.schedule(), flags.plot_schedule)
        print(f"drawn: {flags.plot_schedule}")
        return 0
    run = run or RunDirectory.at(Path("runs") / f"{Path(recipe.model).stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    if is_demo:
        from kimagenet.demo import ensure_demo

        print("No --dataset-dir, and no ImageNet in its default place: training on a small drawn data set instead.")
        print("The first time it has to be drawn, which takes half a minute or so.", flush=True)
        dataset_dir = ensure_demo()
    dataset = identity(DatasetInfo.load(dataset_dir))
    if run.is_begun and flags.loader == "auto":
        flags.loader = loader_of(run)
    if is_resumed := run.is_begun:  # asked before any worker can have begun it
        if not flags.force_resume:
            check_same(run, recipe, dataset)
        if run.final.exists() and Recipe.load(run.recipe) == recipe:
            print(
                f"{run.path}: this run is finished; evaluate it with `{cli.python()} -m kimagenet.evaluate {run.path}`"
            )
            return 0
    splits = open_splits(dataset_dir)
    print_recipe(recipe)
    cli.import_tensorflow()
    _set_up_keras(recipe)
    with ExitStack() as stack:
        training, validation = open_feeds(stack, flags, recipe, *splits)
        loop = build_loop(recipe, training, validation, flags.log_steps)
        print_banner(recipe, dataset_dir, loop, run)
        code = begin_and_fit(loop, recipe, run, flags, cluster, is_resumed, describe_run(dataset_dir, loop, dataset))
    if loop.num_skipped:
        for_good = f"{cli.python()} -m tools.check_shards {dataset_dir} --quarantine"
        print(f"{loop.num_skipped} corrupt records were skipped, see {run.corrupt}; to quarantine them: `{for_good}`")
    if not code:
        how = f"; evaluate it with `{cli.python()} -m kimagenet.evaluate {run.path}`" if validation else ""
        print(f"done: {run.final}{how}")
    return code


def begin_and_fit(
    loop: "Loop",
    recipe: Recipe,
    run: RunDirectory,
    flags: argparse.Namespace,
    cluster: Cluster,
    is_resumed: bool,
    info: dict[str, Any],
) -> int:
    """From the first step or from the last checkpoint on; returns the exit code."""
    from kimagenet.runs.fit import fit
    from kimagenet.runs.saving import restore
    from kimagenet.training.results import Position
    from kimagenet.training.strategy import all_agree

    start = Position()
    if is_resumed:
        start = restore(loop, run, cluster.is_chief)
        if not all_agree(loop.training.strategy, start.epoch * loop.steps_per_epoch + start.step):
            raise UserError(f"{run.path}: not all workers see the same checkpoints in it; start them all again")
        step = f"step {start.step + 1} of {loop.steps_per_epoch:,}"
        where = step if start.step < loop.steps_per_epoch else "its validation" if loop.validation else "its end"
        print(f"resume  at epoch {start.epoch + 1}, {where}", flush=True)
    if cluster.is_chief:
        run.begin(recipe, info)
        loop.training.corrupt.keep_in(run.corrupt)
    return fit(
        loop,
        recipe.epochs,
        run,
        start,
        is_chief=cluster.is_chief,
        checkpoint_steps=flags.checkpoint_steps,
        keep_checkpoints=flags.keep_checkpoints,
    )


def find_run(flags: argparse.Namespace, cluster: Cluster) -> RunDirectory | None:
    """The run directory that --output names, new or begun. Raises `UserError` if there is none but has to be."""
    if flags.output is None:
        if flags.resume:
            which = flags.model if flags.model and Path(flags.model).is_dir() else "RUN"
            raise UserError(f"--resume goes on with the run in --output: --resume --output {which}")
        if cluster.size > 1:
            raise UserError("several workers need one --output that all of them see: say which")
        return None
    run = RunDirectory.at(flags.output)
    if flags.resume and not run.is_begun:
        raise UserError(f"{run.path}: there is no run to resume; leave out --resume to begin one")
    return run


def loader_of(run: RunDirectory) -> str:
    """What a run read with: loaders differ by rounding, and a run that goes on is to be the same bit for bit."""
    words = str(run.read_info().get("loader", "")).split()
    return next((word for word in words if word in loaders.names()), "auto")


def find_dataset(flags: argparse.Namespace, run: RunDirectory | None) -> tuple[Path, bool]:
    """The folder of shards, and whether there is none, so that the demo has to stand in."""
    given = flags.dataset_dir
    if given is None and flags.resume and run:
        given = Path(run.read_info()["dataset_dir"])
    dataset_dir = (given or DEFAULT_DATASET_DIR).expanduser()
    return dataset_dir, given is None and not dataset_dir.exists()


def find_recipe(flags: argparse.Namespace, run: RunDirectory | None, is_demo: bool) -> Recipe:
    """The recipe that the flags make, on top of the run's own with --resume; its model exists."""
    recipe = resolve_recipe(flags, is_demo, Recipe.load(run.recipe) if flags.resume and run else None)
    if fine_tuning.is_saved(recipe.model):
        return recipe.replace(model=str(fine_tuning.find(recipe.model)))
    if recipe.model not in models.names():
        raise UserError(f"{recipe.model}: no such model; the models are {', '.join(models.names())}")
    return recipe


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
    from kimagenet.training.feed import open_feed
    from kimagenet.training.strategy import choose_strategy

    strategy = choose_strategy()
    batch = BatchSpec(recipe.batch_size, recipe.image_size, flags.data_dtype)
    options = {
        "seed": recipe.seed,
        "workers": flags.workers,
        "prefetch": flags.prefetch,
        "device": flags.data_device,
        "strict": flags.strict_loader,
        "corrupt": CorruptRecords(flags.on_corrupt, flags.max_corrupt),
        "timeout": flags.data_timeout,
        "decoder": decoder_options(flags),
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
    from kimagenet.training.loop import Loop
    from kimagenet.training.mixing import MixSpec
    from kimagenet.training.strategy import synchronize_batch_norm

    with training.strategy.scope():
        network = (training.shards.num_classes, recipe.image_size, recipe.dropout_rate)
        is_saved = fine_tuning.is_saved(recipe.model)
        model = fine_tuning.build(Path(recipe.model), *network) if is_saved else models.build(recipe.model, *network)
        optimizer = optim.build(recipe)
        if recipe.sync_bn and training.strategy.num_replicas_in_sync > 1:
            synchronize_batch_norm(model)
    return Loop(
        model,
        optimizer,
        training,
        validation,
        schedule=recipe.schedule(),
        weight_decay=recipe.weight_decay,
        label_smoothing=recipe.label_smoothing,
        mixing=MixSpec.of(recipe),
        seed=recipe.seed,
        xla=recipe.xla,
        ema=recipe.ema > 0,
        log_steps=log_steps,
    )


def describe_run(dataset_dir: Path, loop: "Loop", dataset: dict[str, str]) -> dict[str, Any]:
    """The content of run.json."""
    import keras
    import tensorflow as tf

    info = DatasetInfo.load(dataset_dir)
    feeds = [feed for feed in (loop.training, loop.validation) if feed]
    return {
        "dataset_dir": os.path.abspath(dataset_dir),
        "identity": dataset,
        "wnids": [known.wnid for known in info.classes],
        "short_side": info.build.get("short_side"),
        "records": {feed.shards.split: len(feed.shards.usable) for feed in feeds},
        "classes": list(loop.training.shards.classes),
        "loader": loop.training.description,
        "decoder": dataclasses.asdict(loop.training.loaders[0].options.decoder),
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
    records += (
        f", {len(validation.shards.usable):,} validation records"
        if validation
        else " records, no validation split, so no validation"
    )
    print(f"data    {dataset_dir}: {records}, {training.shards.num_classes} classes")
    steps = f"{training.steps_per_epoch:,} steps of {training.global_batch} per epoch{_details(recipe, training)}"
    print(f"loader  {training.description}: {steps}")
    print(f"model   {recipe.model}: {loop.model.count_params():,} parameters, {recipe.image_size} px")
    epochs = f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)}"
    total = recipe.epochs * training.steps_per_epoch
    updates = f", {total // recipe.iter_size:,} updates" if recipe.iter_size > 1 else ""
    print(f"run     {run.path}: {epochs}, {total:,} steps{updates}", flush=True)


def _details(recipe: Recipe, training: "Feed") -> str:
    """What a step's batch is on each replica, how many steps make an update, what an epoch leaves out."""
    replicas, dropped = training.replicas, training.dropped_records
    parts = [f"{training.global_batch // replicas} on each of {replicas} replicas"] if replicas > 1 else []
    parts += [f"an update every {recipe.iter_size}"] if recipe.iter_size > 1 else []
    parts += [f"{dropped} records left out, others each time"] if dropped else []
    return f" ({', '.join(parts)})" if parts else ""


if __name__ == "__main__":
    sys.exit(main())
