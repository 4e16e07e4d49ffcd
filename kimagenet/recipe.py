"""Every training choice in one frozen value: printed at the start of a run and saved as the run's `recipe.json`."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from kimagenet import augmentation
from kimagenet.import_path import is_import_path
from kimagenet.schedule import NAMES as SCHEDULES
from kimagenet.schedule import Schedule, linear_scaled
from pipelines.errors import UserError, one_line
from pipelines.ranges import check_ranges, range_of, shortened, within
from pipelines.system import json_text
from pipelines.system.reading import read_file

_log = logging.getLogger(__name__)

RECIPE_VERSION = 1

# Far above every useful value. Refusing larger ones keeps a mistyped or hostile recipe from filling the memory.
_LARGEST = 2**32
_LARGEST_SIZE = 2**13  # pixels
_LARGEST_COUNT = 2**20
_WINDOW_DIGITS = 12

# Names of kimagenet.optim.build; the first three are the original's.
OPTIMIZERS = ("sgd", "adam", "rmsprop", "adamw", "lamb", "lion", "nadam", "adamax", "adagrad", "adadelta", "adafactor")
WITH_EPSILON = ("adam", "rmsprop", "adamw", "lamb", "nadam", "adamax", "adagrad", "adadelta")
PRECISIONS = ("off", "float16", "bfloat16")
INPUT_RANGES = ("auto", "tf", "torch", "caffe", "0..1", "0..255")
SAMPLINGS = ("all", "balanced")


def _choice(
    default: Any,
    group: str,
    text: str,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
    /,
    *,
    is_extensible: bool = False,
    **bounds: float,
) -> Any:
    """A field of the recipe.

    Args:
        default: its default value.
        group: the group of flags that `--help` shows it in.
        text: what `--help` says about it.
        choices: the values of a str, if not every text is allowed.
        is_extensible: whether an import path, "module:function", is allowed beside the choices.
        metavar: what `--help` shows in the place of the value; None: by its type.
        bounds: the range of a number, as for `Range`.
    """
    is_number = type(default) in (int, float)
    limits = within(**{"below": _LARGEST, **bounds}) if is_number else {}
    about = {"group": group, "help": text, "choices": choices, "metavar": metavar, "is_extensible": is_extensible}
    return field(default=default, metadata={**about, **limits})


def _of_schedule(name: str, below: float = _LARGEST) -> dict[str, Any]:
    """The bounds of a field that `Schedule` has under the same name."""
    limits = dataclasses.asdict(range_of(Schedule, name))
    return limits | {"below": min(limits["below"], below)}


@dataclass(frozen=True)
class Recipe:
    """What is trained and how. The texts that `--help` shows say what each field means, with its unit.

    Raises:
        UserError: a value has the wrong type, is out of its range, or contradicts another one.
    """

    model: str = _choice(
        "googlenet_bn",
        "model",
        "name of a file in kimagenet/models, keras:NAME, a saved model's path, or your function as module:function",
    )
    image_size: int = _choice(
        224, "model", "height and width of the network's input, pixels", at_least=1, below=_LARGEST_SIZE
    )
    dropout_rate: float = _choice(
        0.0, "model", "dropout rate before the last dense layer; 0 = none", at_least=0, below=1
    )

    pretrained: bool = _choice(
        False, "model", "start from ImageNet weights, which Keras fetches into its cache, with a new head"
    )
    input_range: str = _choice(
        "auto",
        "model",
        "what a saved or own MODEL takes: tf = -1 to 1; torch, caffe = ImageNet's mean subtracted, as Keras' "
        "preprocess_input does; auto = found by its first layers (the default)",
        INPUT_RANGES,
    )
    head_on: str = _choice("", "model", "put a new head on the output of this layer; default: only if it is needed")
    freeze: str = _choice(
        "",
        "model",
        "what is not trained: all-but-head; a number, the first N layers with weights; names of layers, with * and "
        "commas; or none; default: what MODEL's file says",
        None,
        "all-but-head|N|LAYERS|none",
    )
    unfreeze_epoch: int = _choice(
        0, "model", "train all layers after this many epochs, with a new optimizer; 0 = never (the default)", at_least=0
    )
    zero_gamma: bool = _choice(
        False,
        "model",
        "a new model's residual branches begin at zero: gamma of their last BatchNormalization (arXiv 1706.02677)",
    )

    batch_size: int = _choice(
        64, "training", "images per micro-batch, over all replicas", at_least=1, below=_LARGEST_COUNT
    )
    iter_size: int = _choice(
        1, "training", "micro-batches whose mean gradient makes one update", at_least=1, below=_LARGEST_COUNT
    )
    epochs: int = _choice(1, "training", "passes over the training records", **_of_schedule("epochs", _LARGEST_COUNT))
    label_smoothing: float = _choice(
        0.0,
        "training",
        "share of the target spread over all classes; without a value 0.1, the original's",
        at_least=0,
        below=1,
    )
    class_weights: str = _choice(
        "none",
        "training",
        "what the images of a class count in the training loss: none = all the same (the default), balanced = all "
        "classes the same, or a file, JSON or CSV, of class names and weights",
        None,
        "balanced|FILE",
    )
    early_stopping: int = _choice(
        0, "training", "end after this many validations without a lower validation loss; 0 = never", at_least=0
    )
    seed: int = _choice(0, "training", "seed of weights, dropout, record order and augmentation", at_least=0)

    optimizer: str = _choice(
        "adam",
        "optimizer",
        f"the inner optimizer: {', '.join(OPTIMIZERS)}; or module:function, your own function that takes this recipe "
        "and returns a Keras optimizer",
        OPTIMIZERS,
        is_extensible=True,
    )
    momentum: float = _choice(0.9, "optimizer", "momentum of sgd", at_least=0, below=1)
    nesterov: bool = _choice(False, "optimizer", "Nesterov momentum for sgd")
    epsilon: float = _choice(
        1e-1,
        "optimizer",
        "epsilon of every optimizer that has one; 0.1 is the original's, 1e-7 Keras' default",
        above=0,
    )
    weight_decay: float = _choice(
        1e-5, "optimizer", "L2 penalty: this times the sum of squared kernel weights", at_least=0
    )
    decoupled_weight_decay: float = _choice(
        0.0,
        "optimizer",
        "decay outside the gradient, times the learning rate (arXiv 1711.05101); kernels only",
        at_least=0,
    )
    clip_global_norm: float = _choice(
        0.0, "optimizer", "largest norm of an update's gradient, longer ones are scaled down; 0 = off", at_least=0
    )
    ema: float = _choice(
        0.0, "optimizer", "momentum of the moving average of the weights; 0 = none", at_least=0, below=1
    )
    use_lookahead: bool = _choice(False, "optimizer", "wrap the optimizer in LookAhead (arXiv 1907.08610)")
    sync_period: int = _choice(5, "optimizer", "LookAhead: updates between two steps of the slow weights", at_least=1)
    slow_step_size: float = _choice(
        0.5, "optimizer", "LookAhead: how far the slow weights move towards the fast ones", at_least=0, at_most=1
    )

    lr_sched: str = _choice("linear", "learning rate", "how the rate falls over the epochs", SCHEDULES)
    initial_lr: float = _choice(3e-4, "learning rate", "learning rate of the first epoch", **_of_schedule("initial_lr"))
    final_lr: float = _choice(3e-4, "learning rate", "learning rate of the last epoch", **_of_schedule("final_lr"))
    warmup_epochs: float = _choice(
        0.0,
        "learning rate",
        "epochs of linear warm-up from 0; the rate rises at every step",
        **_of_schedule("warmup_epochs"),
    )
    step_epochs: int = _choice(
        30, "learning rate", "lr_sched=step: epochs from one step to the next", **_of_schedule("step_epochs")
    )
    step_factor: float = _choice(
        0.1, "learning rate", "lr_sched=step: what each step multiplies the rate by", **_of_schedule("step_factor")
    )
    reduce_on_plateau: int = _choice(
        0,
        "learning rate",
        "multiply the rate by 0.1 after this many validations without a lower validation loss; 0 = never",
        at_least=0,
    )
    lr_reference_batch: int = _choice(
        0,
        "learning rate",
        "linear scaling rule: rates are multiplied by images per update / this; 0 = rates as given",
        at_least=0,
    )

    augment: str = _choice(
        "full",
        "data",
        "full: crop, flip, rotation and colour, as the original; standard: random resized crop and flip; none; "
        "trivial: standard and TrivialAugmentWide; rand:N,M: standard and RandAugment, N operations of magnitude M "
        "(0 to 30), such as rand:2,9; or module:function, your own function that returns an AugmentSpec",
    )
    repeats: int = _choice(
        1,
        "data",
        "repeated augmentation (arXiv 1901.09335): how often each record of a batch occurs in it, each time with "
        "another augmentation; an epoch has as many steps as without; 1 = off",
        at_least=1,
        below=65,
    )
    mixup: float = _choice(
        0.0, "data", "alpha of mixup on the training device (arXiv 1710.09412), 0.2 is usual; 0 = off", at_least=0
    )
    cutmix: float = _choice(
        0.0,
        "data",
        "alpha of CutMix (arXiv 1905.04899), 1 is usual; 0 = off. With mixup and cutmix each image gets one of them",
        at_least=0,
    )
    erase: float = _choice(
        0.0,
        "data",
        "share of images in which a rectangle is erased (random erasing, arXiv 1708.04896)",
        at_least=0,
        below=1,
    )
    shuffle_window: str = _choice(
        "auto",
        "data",
        "how many records are mixed with each other: record = all of them, one by one; a number = about so many, read "
        "in blocks of neighbours; auto = all up to 50,000 records, else a number that the data set needs",
        None,
        "RECORDS|record",
    )
    sampling: str = _choice(
        "all",
        "data",
        "all = every record once in an epoch (the default); balanced = as many records of each class",
        SAMPLINGS,
    )
    crop_ratio: float = _choice(
        0.875,
        "data",
        "evaluation: image_size / the resized shorter side; the original: 1.0",
        above=0,
        at_most=1,
    )

    sync_bn: bool = _choice(
        True,
        "training",
        "on several devices BatchNormalization normalizes with the whole batch, not each device's part",
    )
    bn_momentum: float = _choice(
        0.0,
        "training",
        "momentum of BatchNormalization's moving statistics; 0 = as the model has it",
        at_least=0,
        below=1,
    )

    amp: str = _choice(
        "off", "speed", "mixed precision; float16 uses loss scaling; without a value float16", PRECISIONS
    )
    xla: bool = _choice(False, "speed", "compile the training step with XLA")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            self._check_type(name, kind)
        for f in dataclasses.fields(self):
            choices, value = f.metadata["choices"], getattr(self, f.name)
            if choices and value not in choices and not (f.metadata["is_extensible"] and is_import_path(value)):
                form = " or module:function" if f.metadata["is_extensible"] else ""
                what = f"{f.name} must be one of {', '.join(choices)}{form}, not {shortened(value)}"
                raise UserError(what, setting=f.name)
        check_ranges(self)
        augmentation.check(self.augment)
        if self.weight_decay and self.decoupled_weight_decay:
            what = "weight_decay (L2) and decoupled_weight_decay exclude each other"
            raise UserError(what, remedy="set one of them to 0", setting="weight_decay")
        if 0 < self.epochs <= self.unfreeze_epoch:
            what = f"unfreeze_epoch is {self.unfreeze_epoch}, but the run has only {self.epochs} epochs"
            raise UserError(what, setting="unfreeze_epoch")
        self.window()  # checks the text
        self.schedule()  # checks what its fields have to do with each other

    def _check_type(self, name: str, kind: type) -> None:
        """An int in the place of a float becomes a float; every other value of a wrong type is refused."""
        value = getattr(self, name)
        if kind is float and type(value) is int and abs(value) < _LARGEST:
            value = float(value)
            object.__setattr__(self, name, value)
        if type(value) is not kind:
            raise UserError(f"{name} must be {kind.__name__}, not {shortened(value)}", setting=name)

    def window(self) -> int | None:
        """The window of the shuffle, as `pipelines.order.spec.ShuffleSpec` has it: None for "auto", 0 for "record"."""
        text = self.shuffle_window
        if text in ("auto", "record"):
            return None if text == "auto" else 0
        if text.isdecimal() and text.isascii() and len(text) <= _WINDOW_DIGITS and int(text):
            return int(text)
        what = f"shuffle_window must be auto, record or a number of records, not {shortened(text)}"
        raise UserError(what, setting="shuffle_window")

    def schedule(self) -> Schedule:
        """The learning rate over the epochs, by the linear scaling rule if `lr_reference_batch` is not 0."""
        scale = 1.0
        if self.lr_reference_batch:
            scale = linear_scaled(1.0, self.batch_size * self.iter_size, self.lr_reference_batch)
        return Schedule(
            self.lr_sched,
            self.initial_lr * scale,
            self.final_lr * scale,
            self.epochs,
            self.warmup_epochs,
            self.step_epochs,
            self.step_factor,
        )

    def replace(self, **changes: Any) -> "Recipe":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """The text of recipe.json."""
        return json.dumps({"version": RECIPE_VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], source: Path | str) -> "Recipe":
        """A recipe from the content of recipe.json.

        Args:
            mapping: `version` and any of the fields; the others have their defaults.
            source: the file, for messages.

        Raises:
            UserError: the version or a field is unknown, or a value is not allowed.
        """
        values = dict(mapping)
        version = values.pop("version", None)
        if version != RECIPE_VERSION:
            what = f"recipe version {shortened(version)} is not the version {RECIPE_VERSION} of this release"
            raise UserError(what, path=source)
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"unknown recipe fields {', '.join(unknown)}", path=source)
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(error.what, path=source, remedy=error.remedy) from None

    @classmethod
    def load(cls, path: Path, *, quiet: bool = False) -> "Recipe":
        """Reads recipe.json. Fields that are missing have their defaults, with a warning in one line.

        Args:
            path: the file.
            quiet: whether there is no warning, because the file was read before.

        Raises:
            UserError: the file is missing or wrong.
        """
        try:
            mapping = json_text.parse(read_file(path))
        except OSError as error:
            raise UserError(str(error.strerror), path=path) from None
        except ValueError as error:
            raise UserError(f"not a JSON file ({error})", path=path) from None
        if not isinstance(mapping, dict):
            raise UserError("a recipe is a JSON object", path=path)
        recipe = cls.from_mapping(mapping, path)
        missing = [f"{name}={value}" for name, value in dataclasses.asdict(recipe).items() if name not in mapping]
        if missing and not quiet:
            plural = "s" * (len(missing) > 1)
            text = f"{path}: lacks {len(missing)} field{plural}; using the default{plural} {' '.join(missing)}"
            _log.warning("%s", one_line(text))
        return recipe
