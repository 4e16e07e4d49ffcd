"""Trains a model: python -m kimagenet.train [MODEL] --loader dali --dataset-dir DIR --output RUN

1. Resolve: `kimagenet.train_settings` makes one frozen value of the flags; nothing is decided after it.
2. Open: the data set, then the loaders of both splits.
3. Build: the model, the optimizer and the loop.
4. Fit: from the first step, or from the last checkpoint.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kimagenet import augmentation, cli, defaults, idle_flags
from kimagenet.backend import use_tensorflow
from kimagenet.class_weights import class_weights
from kimagenet.import_path import load
from kimagenet.inference import fine_tuning, kept_model, start
from kimagenet.recipe import Recipe
from kimagenet.runs.identity import check_order, check_same, identity, order_of
from kimagenet.schedule import plot
from kimagenet.train_flags import make_parser, with_values
from kimagenet.train_report import (
    banner,
    describe_run,
    how_to_evaluate,
    large_pictures,
    recipe_text,
    resume_command,
    slow_statistics,
    where_to_resume,
)
from kimagenet.train_settings import Settings, resolve
from kimagenet.training.cluster import Cluster
from kimagenet.training.recovery import SkippedRecords
from pipelines.augment import AugmentSpec
from pipelines.errors import UserError
from pipelines.loader import BatchSpec
from pipelines.plan import EpochPlan
from pipelines.shards import remedies
from pipelines.shards.advice import unused_splits
from pipelines.shards.dataset import DatasetInfo
from pipelines.shards.shard_set import ShardSet
from pipelines.shards.size_check import check_sizes
from pipelines.system.progress import silent

if TYPE_CHECKING:
    import keras

    from kimagenet.training.feed import Feed
    from kimagenet.training.loop import Loop
    from kimagenet.training.results import Position

Say = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = cli.with_hyphens(sys.argv[1:] if arguments is None else arguments)
    return cli.run(make_parser(), train, with_values(given))


def train(flags: argparse.Namespace) -> int:
    """A whole run, from the flags to final.keras, or the rest of one; returns the exit code.

    Raises:
        UserError: something is wrong, found before anything is trained or overwritten.
    """
    # 1. Resolve: all decisions.
    settings = resolve(flags, Cluster.from_environment())
    say = partial(print, flush=True) if settings.cluster.is_chief else _say_nothing
    for line in idle_flags.lines(flags, settings):
        say(line)
    try:
        return _train(settings, say)
    except cli.EndRequested:  # outside of `fit`, which writes a checkpoint
        say(f"{settings.run.path}: stopped before its next step; resume it to continue")
        return cli.EXIT_RESUME


def _train(settings: Settings, say: Say) -> int:
    recipe, run = settings.recipe, settings.run
    if settings.note:
        say(settings.note)
    if settings.plot_schedule:
        plot(recipe.schedule(), settings.plot_schedule)
        say(f"written: {settings.plot_schedule}")
        return 0

    use_tensorflow()
    # 2. Open: from here on, this process owns the run's folder if it resumes one.
    with ExitStack() as stack:
        if settings.is_resumed and settings.cluster.is_chief:
            stack.enter_context(run.owned())
        return _open_and_fit(settings, say, stack)


def _open_and_fit(settings: Settings, say: Say, stack: ExitStack) -> int:
    recipe, run = settings.recipe, settings.run
    if settings.is_demo:
        generate_demo(settings, say)
    if settings.is_resumed:
        run.check_dataset(settings.dataset_dir)
    info = DatasetInfo.load(settings.dataset_dir)
    dataset = identity(info)
    if settings.is_resumed and not settings.is_forced:
        check_same(run, recipe, dataset)
    if settings.is_resumed:
        fine_tuning.check_classes(run, info, settings.dataset_dir)
    if settings.is_resumed and run.final.exists() and Recipe.load(run.recipe, quiet=True) == recipe:
        say(f"{run.path}: this run is finished{how_to_evaluate(settings, 'validation' in info.splits)}")
        return 0
    splits = open_splits(settings.dataset_dir, info)
    # Finds a batch that the records do not fill, before TensorFlow is imported.
    augment = augmentation.spec_of(recipe.augment)
    plan = EpochPlan(splits[0], augment, recipe.batch_size, recipe.image_size, repeats=recipe.repeats)
    few_updates = defaults.too_few_updates(plan.steps_per_epoch, recipe.epochs, recipe.iter_size)
    weights = class_weights_of(settings, info, splits[0])
    order = order_of(settings.shuffle, splits[0], recipe.seed)
    if settings.is_resumed and not settings.is_forced:
        check_order(run, order)
    say(recipe_text(recipe))
    cli.import_tensorflow()
    _set_up_keras(recipe)
    with ExitStack() as loaders:
        training, validation = open_feeds(loaders, settings, augment, *splits)

        # 3. Build: the first use of the devices.
        loop = build_loop(settings, training, validation, weights, say)
        say(banner(settings, loop, weights))
        if note := large_pictures(settings, training):
            say(note)
        unused = "" if validation else unused_splits(info, settings.dataset_dir, "validation")
        for problem in filter(None, (unused, few_updates, slow_statistics(settings, loop))):
            say(f"note    {problem}")

        # 4. Fit: from here on, files of the run are written.
        if settings.cluster.is_chief:
            stack.enter_context(run.owned())
            if not settings.is_resumed:
                run.check_new()
        code = begin_and_fit(loop, settings, describe_run(settings, loop, dataset, order, weights), say)
        if not code and settings.per_class:
            for line in per_class(loop, run.path):
                say(line)
    if loop.num_skipped:
        command = remedies.quarantine(settings.dataset_dir)
        say(f"{loop.num_skipped} corrupt records were skipped, see {run.corrupt}; to quarantine them: {command}")
    if code == cli.EXIT_RESUME:
        say(f"to continue: `{resume_command(settings)}`")
    if training.is_blocked:  # a read that does not return would hold up the exit
        stack.close()
        cli.leave_at_once(code)
    if not code:
        say(f"done: {run.final}{how_to_evaluate(settings, validation is not None)}")
    return code


def _say_nothing(text: str) -> None:
    """Workers other than the chief print nothing."""


def generate_demo(settings: Settings, say: Say) -> None:
    """Builds the demo data set, unless it is there from an earlier run."""
    from kimagenet.demo import ensure_demo

    say("No --dataset-dir, and no ImageNet in its default place: training on a small generated data set instead.")
    if not settings.dataset_dir.exists():
        say("Generating it takes about 30 seconds on the first run.")
    ensure_demo(progress=None if settings.cluster.is_chief else silent)


def open_splits(dataset_dir: Path, info: DatasetInfo) -> tuple[ShardSet, ShardSet | None]:
    """The shards of the training split, and of the validation split if there is one."""
    if "train" not in info.splits and (unused := unused_splits(info, dataset_dir, "train")):
        raise UserError(f"no split 'train'; {unused}", path=dataset_dir)
    train = ShardSet.open(dataset_dir, "train")
    validation = ShardSet.open(dataset_dir, "validation") if "validation" in info.splits else None
    for shards in filter(None, (train, validation)):
        check_sizes(shards)
    return train, validation


def _set_up_keras(recipe: Recipe) -> None:
    import keras

    keras.utils.set_random_seed(recipe.seed)
    keras.mixed_precision.set_global_policy("float32" if recipe.amp == "off" else f"mixed_{recipe.amp}")


def open_feeds(
    stack: ExitStack,
    settings: Settings,
    augment: AugmentSpec,
    training_shards: ShardSet,
    validation_shards: ShardSet | None,
) -> "tuple[Feed, Feed | None]":
    """Opens the loaders of both splits on all devices; `stack` closes them."""
    from kimagenet.training.feed import open_feed
    from kimagenet.training.strategy import choose_strategy

    recipe, loader = settings.recipe, settings.loader
    strategy = choose_strategy()
    batch = BatchSpec(recipe.batch_size, recipe.image_size, loader.dtype)
    options: dict[str, Any] = {
        "seed": recipe.seed,
        "workers": loader.workers,
        "prefetch": loader.prefetch,
        "device": loader.device,
        "strict": loader.is_strict,
        "corrupt": SkippedRecords(loader.on_corrupt, loader.max_corrupt),
        "timeout": loader.timeout,
        "decoder": loader.decoder,
        "shuffle": settings.shuffle,
    }
    repeated = {**options, "repeats": recipe.repeats}
    training = stack.enter_context(open_feed(strategy, loader.name, training_shards, batch, augment, **repeated))
    if validation_shards is None:
        return training, None
    # The same loader by its name: "auto" would tell the user about its choice a second time.
    chosen, evaluation = training.loaders[0].name, AugmentSpec.evaluation(recipe.crop_ratio)
    feed = open_feed(strategy, chosen, validation_shards, batch, evaluation, **options)
    return training, stack.enter_context(feed)


def class_weights_of(settings: Settings, info: DatasetInfo, shards: ShardSet) -> np.ndarray | None:
    """The weights of the classes, float32 [C]. A run that continues with the same recipe keeps those of a file."""
    text, kept = settings.recipe.class_weights, None
    if settings.is_resumed and Recipe.load(settings.run.recipe, quiet=True).class_weights == text:
        found = settings.run.read_info().get("class_weights")
        kept = found if isinstance(found, list) and len(found) == info.num_classes else None
    return class_weights(text, info.classes, lambda: shards.labels[shards.usable], kept)


def build_loop(
    settings: Settings, training: "Feed", validation: "Feed | None", weights: np.ndarray | None, say: Say
) -> "Loop":
    """Builds the recipe's model, optimizer and schedule in the strategy's scope."""
    from kimagenet import optim
    from kimagenet.training.loop import Loop
    from kimagenet.training.mixing import MixSpec
    from kimagenet.training.strategy import set_batch_norm_momentum, synchronize_batch_norm

    recipe = settings.recipe
    begun_from = recipe.replace(model=str(settings.kept_model)) if settings.kept_model else recipe
    with training.strategy.scope():
        model = start.build(begun_from, training.shards.num_classes, settings.dataset_dir, say)
        optimizer = optim.build(recipe)
        if recipe.bn_momentum:
            set_batch_norm_momentum(model, recipe.bn_momentum)
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
        class_weights=weights,
        mixing=MixSpec.of(recipe),
        seed=recipe.seed,
        xla=recipe.xla,
        ema=recipe.ema > 0,
        log_steps=settings.log_steps,
        validate_every=settings.validate_every,
    )


def make_callbacks(loop: "Loop", settings: Settings, begin: "Position") -> "list[keras.callbacks.Callback]":
    """A look at the first batch, what the recipe says about the validation loss, then the user's own callbacks.

    Args:
        loop: the loop.
        settings: of the training.
        begin: where the run begins, or continues.

    Raises:
        UserError: there is no validation split to watch, or the user's function does not return a callback.
    """
    import keras

    from kimagenet.runs.monitors import EarlyStopping, ReduceOnPlateau, earlier_losses
    from kimagenet.training.first_batch import FirstBatch

    recipe = settings.recipe
    callbacks: list[keras.callbacks.Callback] = [FirstBatch(loop, start.has_trained_weights(recipe))]
    for name, kind in (("early_stopping", EarlyStopping), ("reduce_on_plateau", ReduceOnPlateau)):
        if patience := getattr(recipe, name):
            if loop.validation is None:
                raise UserError(f"{name} needs a validation split, which the data set does not have", setting=name)
            losses = earlier_losses(settings.run.log, begin.epoch, begin.data_epoch)
            callbacks.append(kind(loop, patience, losses))
    for path in settings.callbacks:
        if not isinstance(callback := load(path, "callback")(), keras.callbacks.Callback):
            what = f"{path}: returned {type(callback).__name__}, not a Keras callback"
            raise UserError(what, setting="callback")
        callbacks.append(callback)
    return callbacks


def per_class(loop: "Loop", run: Path) -> Iterator[str]:
    """A table of the validation accuracy of each class, with the weights that the run has ended with."""
    from kimagenet.inference import evaluation, report

    if (validation := loop.validation) is None:
        yield "no validation split, so no accuracy of the classes"
    elif validation.has_peers:
        yield f"for the accuracy of each class: `{remedies.module('kimagenet.evaluate', run, '--per-class')}`"
    else:
        tally = evaluation.over_feed(loop.model, validation, validation.shards.classes)
        yield from report.per_class_lines(tally)


def begin_and_fit(loop: "Loop", settings: Settings, info: dict[str, Any], say: Say) -> int:
    """Trains from the first step, or from the last checkpoint of a resumed run; returns the exit code."""
    from kimagenet.optim import build
    from kimagenet.runs.fit import fit
    from kimagenet.runs.restoring import restore
    from kimagenet.training.results import Position
    from kimagenet.training.strategy import all_agree
    from kimagenet.training.unfreezing import Unfreezing

    run, is_chief, recipe = settings.run, settings.cluster.is_chief, settings.recipe
    unfreezing = Unfreezing(loop, recipe.unfreeze_epoch, partial(build, recipe), say) if recipe.unfreeze_epoch else None
    begin = Position()
    if settings.is_resumed:
        begin = restore(loop, run, is_chief, info["identity"], unfreezing)
        if not all_agree(loop.training.strategy, begin.epoch * loop.steps_per_epoch + begin.step):
            what = "not all workers see the same checkpoints"
            raise UserError(what, path=run.path, remedy="start all workers again")
        say(f"resume  {where_to_resume(begin, recipe.epochs, loop.steps_per_epoch, loop.validation is not None)}")
    callbacks = make_callbacks(loop, settings, begin)
    if is_chief:
        if not settings.kept_model:
            kept_model.keep(run, recipe)
        run.begin(recipe, info)
        loop.training.corrupt.keep_in(run.corrupt)
    return fit(
        loop,
        recipe.epochs,
        run,
        begin,
        is_chief=is_chief,
        checkpoint_steps=settings.checkpoint_steps,
        keep_checkpoints=settings.keep_checkpoints,
        more=[unfreezing, *callbacks] if unfreezing else callbacks,
    )


if __name__ == "__main__":
    sys.exit(main())
