"""What a training is going to do: the decisions from its flags and an earlier run, in one frozen value.

Each setting is taken from the first of these that has it:

1. the flag on the command line;
2. with --resume, or if the run in --output has begun: the run's own files. --resume takes the recipe and the folder of
   the data set from them. A run that has begun also keeps its loader: loaders differ by rounding, and the rest of the
   run must be the same bit for bit;
3. for the recipe: the one of --recipe (before the run's own); without it what `kimagenet.defaults` chooses for the
   data, or the MODEL's own recipe if that is not keras_imagenet's or the data is as large as ImageNet;
4. the default: ImageNet in its usual place if it is there, else the generated demo data set with the demo's recipe.
"""

import argparse
import dataclasses
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kimagenet import augmentation, class_weights, defaults, models
from kimagenet.decoder_flags import decoder_options
from kimagenet.import_path import is_import_path
from kimagenet.inference import fine_tuning, kept_model, start, trained
from kimagenet.networks import applications
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from kimagenet.train_flags import DEFAULT_DATASET_DIR, augmentation_changes, to_resume
from kimagenet.training.cluster import Cluster
from kimagenet.training.recovery import LIMIT
from pipelines import loaders
from pipelines.decoding import DecoderOptions
from pipelines.errors import UserError, did_you_mean
from pipelines.order.spec import FIRST_VERSION, ORDER_VERSION, ShuffleSpec
from pipelines.shards.dataset import DatasetInfo
from pipelines.system.files import user_path

ORIGINAL = "original"  # as a recipe: the defaults of keras_imagenet's train.py
# Its batch_size and iter_size if no flag says them; for other models it demanded the flags.
ORIGINAL_BATCHES = {"mobilenet_v2": (64, 4), "resnet50": (16, 16), "googlenet_bn": (64, 4)}
# What a training of a saved model takes from its run, if nothing else says it.
_KEPT = ("model", "image_size", "dropout_rate", "augment", "crop_ratio", "sync_bn", "amp", "xla")


@dataclass(frozen=True)
class LoaderSettings:
    """How the records are read.

    Attributes:
        name: a loader, or "auto".
        device: where DALI decodes: "cpu", "gpu" or "auto".
        dtype: of the images.
        workers: decoding threads; None: one for each core.
        prefetch: batches kept ready.
        is_strict: whether it is an error if DALI cannot be used.
        on_corrupt: what happens to records that cannot be decoded: "stop" or "skip".
        max_corrupt: how many records may be skipped.
        timeout: seconds that a batch may take; 0: no limit.
        decoder: settings of the GPU's decoder.
    """

    name: str
    device: str
    dtype: str
    workers: int | None
    prefetch: int
    is_strict: bool
    on_corrupt: str
    max_corrupt: int
    timeout: float
    decoder: DecoderOptions


@dataclass(frozen=True)
class Settings:
    """One training.

    Attributes:
        recipe: what is trained and how.
        kept_model: the run's copy of the model file that it began from, if it has one.
        run: where the results go.
        dataset_dir: the folder of shards; of the demo, which may have to be generated first.
        is_demo: whether the data set is the demo.
        is_resumed: whether a run in `run` is continued.
        is_forced: whether the run is continued even if the recipe or the data set have changed.
        loader: how the records are read.
        shuffle: how the records are shuffled.
        cluster: which of several workers this process is.
        log_steps: steps between two log lines.
        checkpoint_steps: steps between two checkpoints.
        keep_checkpoints: how many checkpoints are kept.
        validate_every: epochs between two validations.
        callbacks: import paths of the user's Keras callbacks.
        per_class: whether the accuracy of each class is printed at the end.
        plot_schedule: the file for a plot of the learning rate, instead of a training; None: train.
        to_resume: the flags that the command which continues the run has to repeat.
        note: what the user has to know about these choices, "" if nothing.
    """

    recipe: Recipe
    kept_model: Path | None
    run: RunDirectory
    dataset_dir: Path
    is_demo: bool
    is_resumed: bool
    is_forced: bool
    loader: LoaderSettings
    shuffle: ShuffleSpec
    cluster: Cluster
    log_steps: int
    checkpoint_steps: int
    keep_checkpoints: int
    validate_every: int
    callbacks: tuple[str, ...]
    per_class: bool
    plot_schedule: Path | None
    to_resume: tuple[str, ...]
    note: str


def resolve(flags: argparse.Namespace, cluster: Cluster) -> Settings:
    """Decides everything about a training, in the order of precedence above. Reads files, writes and prints nothing.

    Args:
        flags: what `train_flags.make_parser()` parsed.
        cluster: which of several workers this process is.

    Raises:
        UserError: the flags contradict each other, or name something that is not there.
    """
    is_resume_asked = flags.resume or flags.force_resume
    given = _given_run(flags, cluster, is_resume_asked)
    earlier = given if is_resume_asked else None
    dataset_dir, is_demo = _dataset(flags.dataset_dir, earlier)
    # Without force_resume, `check_same` reads the file again and warns about missing fields.
    of_run = Recipe.load(earlier.recipe, quiet=not flags.force_resume) if earlier else None
    recipe, note = resolve_recipe(flags, is_demo, of_run, None if is_demo else dataset_dir)
    recipe = _with_whole_paths(recipe)
    kept = kept_model.find(given, recipe) if given else None
    recipe = start.checked(recipe, is_kept=kept is not None)
    name = Path(recipe.model).stem if fine_tuning.is_saved(recipe.model) else recipe.model.replace(":", "-")
    run = given or RunDirectory.at(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    loader = LoaderSettings(
        name=loader_of(run) if flags.loader == "auto" and run.is_begun else flags.loader,
        device=flags.data_device,
        dtype=flags.data_dtype,
        workers=flags.workers,
        prefetch=flags.prefetch,
        is_strict=flags.strict_loader,
        on_corrupt=flags.on_corrupt,
        max_corrupt=LIMIT if flags.max_corrupt is None else flags.max_corrupt,
        timeout=flags.data_timeout,
        decoder=decoder_options(flags),
    )
    return Settings(
        recipe=recipe,
        kept_model=kept,
        run=run,
        dataset_dir=dataset_dir,
        is_demo=is_demo,
        is_resumed=run.is_begun,
        is_forced=flags.force_resume,
        loader=loader,
        shuffle=_shuffle(run, recipe),
        cluster=cluster,
        log_steps=flags.log_steps,
        checkpoint_steps=flags.checkpoint_steps,
        keep_checkpoints=flags.keep_checkpoints,
        validate_every=flags.validate_every,
        callbacks=tuple(flags.callback),
        per_class=_is_imbalanced(recipe) if flags.per_class is None else flags.per_class,
        plot_schedule=flags.plot_schedule,
        to_resume=tuple(to_resume(flags)),
        note=note,
    )


def _is_imbalanced(recipe: Recipe) -> bool:
    """Whether a recipe has a means against classes of different sizes."""
    return recipe.class_weights != class_weights.NONE or recipe.sampling == "balanced"


def _given_run(flags: argparse.Namespace, cluster: Cluster, is_resume_asked: bool) -> RunDirectory | None:
    """The run directory of --output, None without --output."""
    if flags.output is None:
        if is_resume_asked:
            which = flags.model if flags.model and Path(flags.model).is_dir() else "RUN"
            what = "--resume continues the run in --output, which is missing"
            raise UserError(what, remedy=f"add --output {which}")
        if cluster.size > 1:
            raise UserError("several workers need one --output", remedy="add a folder that all of them see")
        return None
    run = RunDirectory.at(flags.output)
    if is_resume_asked and not run.is_begun:
        raise UserError("there is no run to resume", path=run.path, remedy="leave out --resume to begin one")
    return run


def _dataset(given: Path | None, earlier: RunDirectory | None) -> tuple[Path, bool]:
    """The folder of shards, and whether it is the demo's."""
    if given is None and earlier:
        given = Path(earlier.read_info(dataset_dir=str)["dataset_dir"])
    if given is not None:
        return user_path(given), False
    with suppress(UserError):  # without a home folder there is no default place
        if (folder := user_path(DEFAULT_DATASET_DIR)).exists():
            return folder, False
    from kimagenet.demo import demo_directory

    return demo_directory(), True


def _training_records(dataset_dir: Path | None) -> int:
    """The usable training records of a data set; None: of the demo, which may not be there yet."""
    if dataset_dir is None:
        from kimagenet.demo import CLASSES, TRAIN_PER_CLASS

        return TRAIN_PER_CLASS * len(CLASSES)
    split = DatasetInfo.load(dataset_dir).splits.get("train")
    return split.num_records - len(split.quarantine) if split else 0  # without the split, opening it is an error


def _with_whole_paths(recipe: Recipe) -> Recipe:
    """The recipe with the whole paths of its model file and of its class weights."""
    if fine_tuning.is_saved(recipe.model):
        path = Path(recipe.model).absolute()
        recipe = recipe.replace(model=str(trained.find_model(path) if path.is_dir() else path))
    if recipe.class_weights in (class_weights.NONE, class_weights.BALANCED):
        return recipe
    return recipe.replace(class_weights=str(user_path(recipe.class_weights).absolute()))


class _Base(NamedTuple):
    """The recipe that flags change, and where it comes from if the user should know."""

    recipe: Recipe
    note: str = ""


def resolve_recipe(
    flags: argparse.Namespace,
    is_demo: bool = False,
    of_run: Recipe | None = None,
    dataset_dir: Path | None = None,
) -> tuple[Recipe, str]:
    """The recipe with the flags' changes, and a note on where it comes from ("" if the user said it).

    Args:
        flags: what `train_flags.make_parser()` parsed.
        is_demo: whether the data set is the demo.
        of_run: the recipe of the run that is continued.
        dataset_dir: the data set, which a recipe may depend on; None: the demo.

    Raises:
        UserError: there is no such recipe, the flags contradict each other, or there is no such data set.
    """
    flags = argparse.Namespace(**{**vars(flags), "model": _expanded(flags.model), "recipe": _expanded(flags.recipe)})
    changes = {f.name: vars(flags)[f.name] for f in dataclasses.fields(Recipe) if vars(flags).get(f.name) is not None}
    if changes.get("decoupled_weight_decay"):
        changes.setdefault("weight_decay", 0.0)  # the two exclude each other, and only one was asked for
    if of_run and flags.model:
        changes["model"] = flags.model
    base = _Base(of_run) if of_run and not flags.recipe else _base(flags, is_demo, changes, dataset_dir)
    if augmentation_changes(flags):
        text = changes.get("augment", base.recipe.augment)
        changes["augment"] = augmentation.with_changes(text, augmentation_changes(flags))
    return base.recipe.replace(**changes), base.note


def _expanded(name: str | None) -> str | None:
    """The name of a model or a recipe, with the home folder in place of ~ if it is a path that starts so."""
    return str(user_path(name)) if name and name.startswith("~") else name


def _base(flags: argparse.Namespace, is_demo: bool, given: Mapping[str, Any], dataset_dir: Path | None) -> _Base:
    known = models.recipes()
    if flags.recipe == ORIGINAL:
        return _Base(_original_defaults(flags.model or Recipe.model))
    if flags.recipe is not None:
        return _Base(known[flags.recipe] if flags.recipe in known else _recipe_in(flags.recipe))
    model = flags.model or ("demo" if is_demo else Recipe.model)
    says_all = given.keys() >= defaults.ORIGINAL_CHOICES
    is_saved = fine_tuning.is_saved(model)
    is_trained = is_saved or bool(given.get("pretrained"))
    if is_trained or applications.is_application(model) or is_import_path(model):
        own = fine_tuning.recipe_of(model) if is_saved else Recipe(model=model)
        return _Base(own) if says_all else _chosen(own, given, _training_records(dataset_dir), is_trained)
    if model not in known:
        return _Base(_original_defaults(model))  # `resolve` refuses an unknown model
    if not models.is_of_keras_imagenet(model):
        return _Base(known[model], f"No --recipe: using the recipe {model}.")
    if says_all:
        return _Base(_original_defaults(model) if model in ORIGINAL_BATCHES else known[model])
    if (count := _training_records(dataset_dir)) < defaults.MANY_RECORDS:
        return _chosen(Recipe(model=model), given, count, False)
    source = models.reported()[model].source
    note = f"No --recipe: {count:,} training records are many, so the recipe is {model}, from {source}."
    return _Base(known[model], note)


def _chosen(own: Recipe, given: Mapping[str, Any], records: int, is_trained: bool) -> _Base:
    """What fits the data, with the shape and the images of a trained model's own recipe."""
    base = Recipe(**{name: getattr(own, name) for name in _KEPT})
    choices = defaults.choose(given, records, given.get("image_size", own.image_size), is_trained=is_trained)
    weights = "trained" if is_trained else "new"
    title = f"No --recipe: chosen for {records:,} training records and {weights} weights; --recipe {ORIGINAL} is for"
    lines = [f"{title} keras_imagenet's values", *defaults.lines(choices)]
    chosen = {name: value for choice in choices for name, value in choice.values.items()}
    return _Base(base.replace(**given, **chosen), "\n".join(lines))  # together: a warm-up has to fit the epochs


def _recipe_in(name: str) -> Recipe:
    """The recipe in a file or in a run's folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        return Recipe.load(RunDirectory.existing(path).recipe)
    if path.is_file() or path.suffix == ".json":
        return Recipe.load(path)
    known = [ORIGINAL, *models.recipes()]
    remedy = did_you_mean(name, known) or f"choose a recipe.json, a run's folder or one of {', '.join(known)}"
    raise UserError(f"{name}: no such recipe", remedy=remedy, setting="recipe")


def _original_defaults(model: str) -> Recipe:
    batch_size, iter_size = ORIGINAL_BATCHES.get(model, (Recipe.batch_size, Recipe.iter_size))
    size = fine_tuning.recipe_of(model).image_size if fine_tuning.is_saved(model) else Recipe.image_size
    return Recipe(model=model, image_size=size, batch_size=batch_size, iter_size=iter_size, crop_ratio=1.0)


def _shuffle(run: RunDirectory, recipe: Recipe) -> ShuffleSpec:
    """How the records are shuffled. A run that has begun keeps its version, and all of it unless the recipe changes."""
    is_balanced = recipe.sampling == "balanced"
    if not run.is_begun:
        return ShuffleSpec(window=recipe.window(), is_balanced=is_balanced)
    order = run.read_info().get("order", {"version": FIRST_VERSION})  # before run.json had a field for it
    try:
        version, window, block = (order.get(name) for name in ("version", "window", "block_records"))
        if type(version) is not int or not {type(window), type(block)} <= {int, type(None)}:
            raise TypeError
        shuffle = ShuffleSpec(version, window, block)
    except (AttributeError, TypeError, UserError):
        what = f"it has an order of records that this release does not know (its own is version {ORDER_VERSION})"
        raise UserError(what, path=run.info, remedy="use the release that began the run") from None
    before = Recipe.load(run.recipe, quiet=True)
    if (before.shuffle_window, before.sampling) == (recipe.shuffle_window, recipe.sampling):
        return dataclasses.replace(shuffle, is_balanced=is_balanced)
    return ShuffleSpec(shuffle.version, recipe.window(), is_balanced=is_balanced)


def loader_of(run: RunDirectory) -> str:
    """The loader that a run began with, or "auto" if its run.json does not say one of this release."""
    loader = run.read_info().get("loader")
    name = loader.get("name") if isinstance(loader, dict) else _loader_of_older_run(loader)
    return name if name in loaders.names() else "auto"


def _loader_of_older_run(loader: object) -> str | None:
    """Before run.json had fields for it, the loader was a text such as "2 × dali on the gpu"."""
    words = str(loader or "").split()
    return next((word for word in words if word in loaders.names()), None)
