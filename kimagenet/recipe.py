"""Every training choice in one frozen value: printed at the start of a run and saved beside it as `recipe.json`."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from kimagenet.schedule import NAMES as SCHEDULES
from kimagenet.schedule import Schedule, linear_scaled
from pipelines.errors import UserError

RECIPE_VERSION = 1

# Far beyond what makes sense: a hostile or mistyped recipe must not get as far as the memory.
_LARGEST = 2**32
_LARGEST_OF = {"image_size": 2**13, "batch_size": 2**20, "iter_size": 2**20, "epochs": 2**20}

# Names of kimagenet.optim.build; the first three are the original's.
OPTIMIZERS = ("sgd", "adam", "rmsprop", "adamw", "lamb", "lion", "nadam", "adamax", "adagrad", "adadelta", "adafactor")
AUGMENTS = ("full", "standard", "none")
PRECISIONS = ("off", "float16", "bfloat16")


def _choice(default: Any, group: str, text: str, choices: tuple[str, ...] | None = None) -> Any:
    """A recipe field: its default, and what `--help` says of it."""
    return field(default=default, metadata={"group": group, "help": text, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """What is trained and how. Units stand in the help texts; a bad value raises `UserError` at birth."""

    model: str = _choice("googlenet_bn", "model", "name of a file in kimagenet/models, or a saved model's path")
    image_size: int = _choice(224, "model", "height and width of the network's input, pixels")
    dropout_rate: float = _choice(0.0, "model", "dropout before the last dense layer; 0 = none")

    batch_size: int = _choice(64, "training", "images per micro-batch, over all replicas")
    iter_size: int = _choice(1, "training", "micro-batches whose mean gradient makes one update")
    epochs: int = _choice(1, "training", "passes over the training records")
    label_smoothing: float = _choice(0.0, "training", "share of the target spread over all classes; the original: 0.1")
    seed: int = _choice(0, "training", "seeds weights, dropout, record order and augmentation")

    optimizer: str = _choice("adam", "optimizer", "the inner optimizer", OPTIMIZERS)
    momentum: float = _choice(0.9, "optimizer", "momentum of sgd")
    nesterov: bool = _choice(False, "optimizer", "Nesterov momentum for sgd")
    epsilon: float = _choice(
        1e-1, "optimizer", "epsilon of every optimizer that has one; 0.1 is the original's, 1e-7 Keras' default"
    )
    weight_decay: float = _choice(1e-5, "optimizer", "L2 penalty: this times the sum of squared kernel weights")
    decoupled_weight_decay: float = _choice(
        0.0, "optimizer", "decay apart from the gradient, times the learning rate (arXiv 1711.05101); kernels only"
    )
    clip_global_norm: float = _choice(0.0, "optimizer", "an update's gradient is clipped to this norm; 0 = off")
    ema: float = _choice(0.0, "optimizer", "momentum of the moving average of the weights; 0 = none")
    use_lookahead: bool = _choice(False, "optimizer", "wrap the optimizer in LookAhead (arXiv 1907.08610)")
    sync_period: int = _choice(5, "optimizer", "LookAhead: updates between two steps of the slow weights")
    slow_step_size: float = _choice(0.5, "optimizer", "LookAhead: how far the slow weights go towards the fast ones")

    lr_sched: str = _choice("linear", "learning rate", "how the rate falls from epoch to epoch", SCHEDULES)
    initial_lr: float = _choice(3e-4, "learning rate", "learning rate of the first epoch")
    final_lr: float = _choice(3e-4, "learning rate", "learning rate of the last epoch")
    warmup_epochs: float = _choice(0.0, "learning rate", "epochs of linear warm-up from zero, step by step")
    step_epochs: int = _choice(30, "learning rate", "lr_sched=step: epochs from one step to the next")
    step_factor: float = _choice(0.1, "learning rate", "lr_sched=step: what each step multiplies the rate by")
    lr_reference_batch: int = _choice(
        0, "learning rate", "linear scaling rule: rates are times images per update / this; 0 = as given"
    )

    augment: str = _choice(
        "full",
        "data",
        "full: crop, flip, rotation, colour as the original; standard: random resized crop and flip. RandAugment is "
        "not offered: DALI's auto_aug and an implementation in tf.data cannot be shown to agree",
        AUGMENTS,
    )
    mixup: float = _choice(
        0.0, "data", "alpha of mixup on the training device (arXiv 1710.09412), 0.2 is usual; 0 = off"
    )
    cutmix: float = _choice(
        0.0, "data", "alpha of CutMix (arXiv 1905.04899), 1 is usual; with mixup too, each image draws one of them"
    )
    erase: float = _choice(0.0, "data", "share of images that lose a rectangle (random erasing, arXiv 1708.04896)")
    crop_ratio: float = _choice(
        0.875, "data", "evaluation: image_size over the resized shorter side; the original: 1.0"
    )

    sync_bn: bool = _choice(
        True,
        "training",
        "on several devices BatchNormalization normalizes with the whole batch, not each device's part",
    )

    amp: str = _choice("off", "speed", "mixed precision; float16 has loss scaling, --amp alone means it", PRECISIONS)
    xla: bool = _choice(False, "speed", "compile the training step with XLA")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if kind is float and type(value) is int and abs(value) < _LARGEST:
                value = float(value)
                object.__setattr__(self, name, value)
            if type(value) is not kind:
                raise UserError(f"recipe: {name} must be {kind.__name__}, not {_shown(value)}")
            if kind in (int, float) and not abs(value) < _LARGEST_OF.get(name, _LARGEST):
                raise UserError(
                    f"recipe: {name} must be less than {_LARGEST_OF.get(name, _LARGEST):,}, not {_shown(value)}"
                )
        for f in dataclasses.fields(self):
            choices = f.metadata["choices"]
            if choices and getattr(self, f.name) not in choices:
                raise UserError(f"recipe: {f.name} is one of {', '.join(choices)}, not {getattr(self, f.name)!r}")
        positive = (
            "image_size",
            "batch_size",
            "iter_size",
            "epochs",
            "initial_lr",
            "epsilon",
            "sync_period",
            "step_epochs",
            "step_factor",
        )
        shares = ("dropout_rate", "label_smoothing", "momentum", "ema", "step_factor", "erase")
        decays = ("weight_decay", "decoupled_weight_decay")
        not_negative = (
            *decays,
            "clip_global_norm",
            "final_lr",
            "warmup_epochs",
            "lr_reference_batch",
            "seed",
            "mixup",
            "cutmix",
        )
        # `not (… > 0)` refuses NaN as well.
        for name in positive:
            if not getattr(self, name) > 0:
                raise UserError(f"recipe: {name} must be positive, not {getattr(self, name)}")
        for name in shares:
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"recipe: {name} must be in [0, 1), not {getattr(self, name)}")
        for name in not_negative:
            if not getattr(self, name) >= 0:
                raise UserError(f"recipe: {name} must not be negative, not {getattr(self, name)}")
        if not 0 < self.crop_ratio <= 1:
            raise UserError(f"recipe: crop_ratio must be in (0, 1], not {self.crop_ratio}")
        if self.lr_sched == "exp" and self.final_lr == 0:
            raise UserError("recipe: lr_sched=exp needs a positive final_lr")
        if not 0 <= self.slow_step_size <= 1:
            raise UserError(f"recipe: slow_step_size must be in [0, 1], not {self.slow_step_size}")
        if self.weight_decay and self.decoupled_weight_decay:
            raise UserError("recipe: weight_decay (L2) and decoupled_weight_decay exclude each other: set one to 0")
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"recipe: warmup_epochs must be less than epochs, not {self.warmup_epochs}")

    def schedule(self) -> Schedule:
        """The learning rate over the epochs, by the linear scaling rule if `lr_reference_batch` asks for it."""
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
    def from_mapping(cls, mapping: Mapping[str, Any], source: str) -> "Recipe":
        """Checks names, types and ranges; `source` is named in the `UserError`."""
        values = dict(mapping)
        version = values.pop("version", None)
        if version != RECIPE_VERSION:
            raise UserError(f"{source}: recipe version {version!r} is not the version {RECIPE_VERSION} of this release")
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"{source}: unknown recipe fields {', '.join(unknown)}")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Reads recipe.json; raises `UserError` with the file's name if it is missing or wrong."""
        try:
            mapping = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not a JSON file ({error})") from None
        if not isinstance(mapping, dict):
            raise UserError(f"{path}: a recipe is a JSON object")
        return cls.from_mapping(mapping, str(path))


def _shown(value: Any) -> str:
    """For an error's message: of a long value only its beginning."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
