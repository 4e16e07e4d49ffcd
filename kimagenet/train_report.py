"""What a training says about itself at its start: the lines in the terminal, and run.json."""

import dataclasses
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kimagenet import defaults, models
from kimagenet.class_weights import described
from kimagenet.inference import start
from kimagenet.networks import freezing
from kimagenet.recipe import Recipe
from kimagenet.train_settings import Settings
from kimagenet.training.recovery import LIMIT
from pipelines.shards import remedies
from pipelines.shards.advice import better_short_side
from pipelines.shards.dataset import DatasetInfo
from pipelines.shards.shard_set import ShardSet
from pipelines.system.reading import read_file

if TYPE_CHECKING:
    from kimagenet.training.feed import Feed
    from kimagenet.training.loop import Loop
    from kimagenet.training.results import Position


def recipe_text(recipe: Recipe) -> str:
    """All fields of the recipe as `name=value`, wrapped."""
    pairs = " ".join(f"{name}={value}" for name, value in dataclasses.asdict(recipe).items())
    return textwrap.fill(f"recipe  {pairs}", 118, subsequent_indent=" " * 8, break_on_hyphens=False)


def banner(settings: Settings, loop: "Loop", weights: np.ndarray | None = None) -> str:
    """Lines with the numbers of the training: data, order and class weights if they matter, loader, model, run."""
    recipe, training, validation = settings.recipe, loop.training, loop.validation
    records = f"{len(training.shards.usable):,} training records"
    if validation:
        records += f", {len(validation.shards.usable):,} validation records"
    else:
        records += ", no validation split, so no validation"
    steps = f"{training.steps_per_epoch:,} steps of {training.global_batch} per epoch{_details(recipe, training)}"
    epochs = f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)}"
    total = recipe.epochs * training.steps_per_epoch
    updates = f", {total // recipe.iter_size:,} updates" if recipe.iter_size > 1 else ""
    lines = (
        f"data    {settings.dataset_dir}: {records}, {training.shards.num_classes} classes",
        *_order(settings, training.shards),
        *_weights(recipe, weights, training.shards),
        f"loader  {training.description}: {steps}",
        f"model   {recipe.model}: {_parameters(recipe, loop)}, {recipe.image_size} px",
        f"run     {settings.run.path}: {epochs}, {total:,} steps{updates}",
    )
    return "\n".join(lines)


def _parameters(recipe: Recipe, loop: "Loop") -> str:
    """How many parameters are trained, and which layers are not."""
    trained, every = freezing.parameters(loop.model)
    text = f"{trained:,} of {every:,} parameters are trained"
    layers = list(freezing.weighted_layers(loop.model))
    frozen = sum(not layer.trainable for layer in layers)
    if frozen:
        plural = "s" * (recipe.unfreeze_epoch != 1)
        until = f" in the first {recipe.unfreeze_epoch} epoch{plural}" if recipe.unfreeze_epoch else ""
        source = f"freeze={recipe.freeze}" if recipe.freeze else "as in its file; freeze=none trains all"
        text += f"{until}, {frozen} of {len(layers)} layers with weights are frozen ({source})"
    return text


def large_pictures(settings: Settings, training: "Feed") -> str:
    """One line if most training pictures are far larger than the run needs, which costs only time; else ""."""
    size, short_sides = settings.recipe.image_size, training.shards.sizes[training.shards.usable].min(axis=1)
    if not (better := better_short_side(short_sides, size)):
        return ""
    what = f"most training pictures are far larger than {size} px need"
    what += f" (their median shorter side has {np.median(short_sides):,.0f} px) and slow to decode"
    return f"data    {what}; smaller ones: {remedies.build_shards('IMAGES', 'SHARDS', f'--short-side={better}')}"


def slow_statistics(settings: Settings, loop: "Loop") -> str:
    """What to say if the moving statistics of a new model cannot follow in so few steps; else ""."""
    recipe = settings.recipe
    if start.has_trained_weights(recipe):
        return ""
    momentum = max((layer.momentum for layer in models.batch_norms(loop.model)), default=0.0)
    problem = defaults.slow_statistics(momentum, recipe.epochs * loop.steps_per_epoch)
    return problem and f"{problem}; set a smaller --bn-momentum"


def _details(recipe: Recipe, training: "Feed") -> str:
    """The batch of each replica, the steps of an update, the records that an epoch leaves out."""
    replicas, dropped = training.replicas, training.dropped_records
    parts = [f"{training.global_batch // replicas} on each of {replicas} replicas"] if replicas > 1 else []
    parts += [f"one update every {recipe.iter_size} steps"] if recipe.iter_size > 1 else []
    parts += [f"each record {recipe.repeats} times in its batch"] if recipe.repeats > 1 else []
    if dropped:
        plural = "s" * (dropped != 1)
        parts.append(f"{dropped} record{plural} dropped this epoch (different one{plural} each epoch)")
    return f"; {', '.join(parts)}" if parts else ""


def _order(settings: Settings, shards: ShardSet) -> list[str]:
    """The line about balanced sampling, or about blocks and their window; none if records are shuffled one by one."""
    if settings.shuffle.is_balanced:
        return [_balanced(shards)]
    chosen = settings.shuffle.resolved(shards)
    if not chosen.window or not chosen.block_records:
        return []
    record = float(shards.lengths.mean())
    block = f"blocks of {chosen.block_records} neighbours ({_size(chosen.block_records * record)})"
    window = f"mixed with each other over {chosen.window:,} records ({_size(chosen.window * record)} of memory)"
    reason = "; small blocks, because the shards are sorted by class" if shards.is_sorted else ""
    return [f"order   {block}, {window}{reason}"]


def _balanced(shards: ShardSet) -> str:
    """The line about balanced sampling: how often the records of the rarest and the most frequent class are read."""
    counts = np.bincount(shards.labels[shards.usable], minlength=shards.num_classes)
    of_class = counts.sum() / np.count_nonzero(counts)
    ends = (int(np.argmin(np.where(counts, counts, counts.max()))), int(np.argmax(counts)))
    rare, frequent = (f"each of {counts[end]:,} of {shards.classes[end]} {of_class / counts[end]:.2g}" for end in ends)
    return f"order   balanced: about {of_class:,.0f} records of each class in an epoch; {rare} times, {frequent} times"


def _weights(recipe: Recipe, weights: np.ndarray | None, shards: ShardSet) -> list[str]:
    """The line about class weights; none without them."""
    return [] if weights is None else [f"weights {described(recipe.class_weights, weights, shards.classes)}"]


def _size(count: float) -> str:
    """Bytes, for people."""
    unit, size = next(((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6)) if count >= size), ("kB", 1e3))
    return f"{count / size:.1f} {unit}"


def where_to_resume(begin: "Position", epochs: int, steps_per_epoch: int, has_validation: bool) -> str:
    """Where a run continues, or that nothing of it is left.

    Args:
        begin: its position.
        epochs: of the whole run, as the recipe has it now.
        steps_per_epoch: steps of an epoch.
        has_validation: whether an epoch ends with a validation.
    """
    if begin.epoch >= epochs:
        done = f"{begin.epoch} epoch{'s' * (begin.epoch != 1)} {'are' if begin.epoch != 1 else 'is'} done"
        return f"nothing is left to train: {done}, and the recipe has epochs={epochs}"
    step = f"step {begin.step + 1} of {steps_per_epoch:,}"
    where = step if begin.step < steps_per_epoch else "its validation" if has_validation else "its end"
    return f"at epoch {begin.epoch + 1}, {where}"


def how_to_evaluate(settings: Settings, has_validation: bool) -> str:
    """The end of the line that names the run's model: how to evaluate it, "" without a validation split.

    The command has the flags that it needs to leave out the validation records that the run left out.
    """
    if not has_validation:
        return ""
    skipped = sum(line["split"] == "validation" for line in _corrupt_lines(settings.run.corrupt))
    command = remedies.module("kimagenet.evaluate", settings.run.path, *_skipping(skipped))
    return f"; evaluate it with `{command}`"


def resume_command(settings: Settings) -> str:
    """The command that continues the run as it is, with the flags that no file of the run keeps."""
    return remedies.module("kimagenet.train", "--resume", "--output", settings.run.path, *settings.to_resume)


def _skipping(count: int) -> list[str]:
    """The flags with which a command may skip this many corrupt records."""
    if not count:
        return []
    return ["--on-corrupt=skip", *([f"--max-corrupt={count}"] if count > LIMIT else [])]


def _corrupt_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's corrupt.jsonl, none if it cannot be read: a finished run does not fail because of it."""
    try:
        return [json.loads(line) for line in read_file(path).splitlines()]
    except (OSError, ValueError):
        return []


def describe_run(
    settings: Settings,
    loop: "Loop",
    identity: dict[str, str],
    order: dict[str, Any],
    weights: np.ndarray | None = None,
) -> dict[str, Any]:
    """The content of run.json, see docs/data-format.md.

    Args:
        settings: what the run does.
        loop: its open loaders.
        identity: what `kimagenet.runs.identity` says about the data set.
        order: what it says about the order of the records.
        weights: of the classes, float32 [C]; None: all 1.
    """
    import keras
    import tensorflow as tf

    info = DatasetInfo.load(settings.dataset_dir)
    training = loop.training
    feeds = [feed for feed in (training, loop.validation) if feed]
    return {
        "dataset_dir": os.path.abspath(settings.dataset_dir),
        "identity": identity,
        "order": order,
        "wnids": [known.wnid for known in info.classes],
        "short_side": info.build.get("short_side"),
        "records": {feed.shards.split: len(feed.shards.usable) for feed in feeds},
        "classes": list(training.shards.classes),
        "parameters": dict(zip(("trained", "all"), freezing.parameters(loop.model), strict=True)),
        "class_weights": None if weights is None else weights.tolist(),
        "loader": {
            "name": training.loaders[0].name,
            "device": training.loaders[0].device,
            "replicas": training.replicas,
        },
        "decoder": dataclasses.asdict(training.loaders[0].options.decoder),
        "versions": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "python": sys.version.split()[0],
        },
    }
