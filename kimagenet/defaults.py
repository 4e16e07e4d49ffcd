"""The training choices that the user left open, so that a run learns from the data that it has. No TensorFlow.

keras_imagenet's own defaults are for ImageNet: an update for every 256 images, and an epsilon of 0.1 for Adam. With a
thousand images such a run ends before it has learned anything. So without a recipe the choices follow from the number
of training records, the epochs, the image size and whether the weights come from a trained model. What the user chose
stays, and the other choices follow from it. docs/training.md has the trials behind the numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kimagenet.recipe import OPTIMIZERS, WITH_EPSILON
from pipelines.errors import UserError

# From so many training records on, a new model is trained with the recipe that is published for it.
MANY_RECORDS = 500_000

# A command that says all of these is one of keras_imagenet's: what it does not say is as there.
ORIGINAL_CHOICES = frozenset({"optimizer", "batch_size", "iter_size", "lr_sched", "initial_lr", "final_lr", "epochs"})

_FEW_UPDATES = 50  # a run with fewer learns nearly nothing

_SMALLEST_BATCH, _LARGEST_BATCH = 16, 128  # BatchNormalization needs some images
_LARGEST_AT_224 = 64  # images of 224 pixels, for which most GPUs have memory
_WANTED_UPDATES, _COUNTED_EPOCHS = 1_000, 30  # that the batch size leaves to a run; of the epochs at most so many count


class _Aim(NamedTuple):
    """How long a training is, and how fast.

    Attributes:
        updates: of the whole run.
        fewest: epochs.
        most: epochs.
        rate: what the learning rate of an optimizer is multiplied by.
    """

    updates: int
    fewest: int
    most: int
    rate: float


_NEW, _TRAINED = _Aim(3_000, 20, 100, 1.0), _Aim(1_000, 5, 30, 0.3)

# Learning rates of new weights for 64 images an update: of sgd with a momentum of 0.9, and of the others.
_REFERENCE_IMAGES = 64
_RATES = {"sgd": 2.5e-2, "lion": 1e-4, "lamb": 4e-3, "adagrad": 1e-2, "adadelta": 1.0, "adafactor": 1e-2}
_USUAL_RATE = 1e-3
_DECAY = 0.05
_EPSILON = 1e-7
_WITHOUT_EPSILON = {*OPTIMIZERS} - {*WITH_EPSILON}
_WARM_UP_SHARE, _LONGEST_WARM_UP = 0.1, 5.0  # of the epochs; epochs
_LAST_SHARE = 0.01  # of the rate, in the last epoch of a schedule that must not end at 0

_TIME_CONSTANTS = 5.0  # of the moving statistics in an epoch: less than 1 % of the old values is left after it
_FASTEST, _SLOWEST = 0.8, 0.99  # a faster mean is one of very few images; the slowest is Keras' default
_FORGOTTEN = 0.01
_TOO_MUCH = 0.2  # of the initial statistics at the end of a run: validation then stays near chance


class Choice(NamedTuple):
    """Fields of the recipe that are chosen together.

    Attributes:
        values: by field.
        reason: why these, for the user.
    """

    values: dict[str, Any]
    reason: str

    def __str__(self) -> str:
        items = self.values.items()
        return " ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in items)


class _Choices:
    """What is known so far: what the user chose, and what was chosen after it."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.known = dict(given)
        self.made: list[Choice] = []

    def take(self, reason: str, **values: Any) -> None:
        """Takes those of the values that are still open."""
        if fresh := {name: value for name, value in values.items() if name not in self.known}:
            self.known |= fresh
            self.made.append(Choice(fresh, reason))


def choose(given: Mapping[str, Any], records: int, image_size: int, *, is_trained: bool) -> list[Choice]:
    """Chooses what the user left open.

    Args:
        given: the fields of the recipe that the user chose. Wrong values are not refused here, but by the recipe.
        records: usable training records.
        image_size: height and width of the network's input, pixels.
        is_trained: whether the weights come from a trained model.

    Returns:
        The choices; none is of a field in `given`.
    """
    choices, aim = _Choices(given), _TRAINED if is_trained else _NEW
    known, take = choices.known, choices.take
    size, why = _batch_size(records, image_size, known.get("epochs"))
    take(why, batch_size=size)
    take("every step is an update", iter_size=1)
    steps = max(1, records // max(1, known["batch_size"]))
    updates = max(1, steps // max(1, known["iter_size"]))
    epochs = min(max(math.ceil(aim.updates / updates), aim.fewest), aim.most)
    take(f"{epochs * updates:,} updates", epochs=epochs)
    if "weight_decay" in known and "decoupled_weight_decay" not in known:
        take("works with most networks", optimizer="adam")
    elif "optimizer" not in known:
        take("works with most networks", optimizer="adamw")
        take("outside of the gradient, as adamw has it", decoupled_weight_decay=_DECAY, weight_decay=0.0)
    if known["optimizer"] not in _WITHOUT_EPSILON:
        take("Keras' default; keras_imagenet's 0.1 is for longer runs", epsilon=_EPSILON)
    rate, why = _rate(known, aim)
    take(why, initial_lr=rate)
    take("the rate falls slowly at first and at the end", lr_sched="cosine")
    take("the rate at the end", final_lr=_final_rate(known["lr_sched"], known["initial_lr"]))
    warm_up = round(min(_WARM_UP_SHARE * max(1, known["epochs"]), _LONGEST_WARM_UP), 2)
    take("the rate rises from 0 in these epochs", warmup_epochs=warm_up)
    momentum = round(min(max(1 - _TIME_CONSTANTS / steps, _FASTEST), _SLOWEST), 3)
    follow = math.ceil(math.log(_FORGOTTEN) / math.log(momentum))
    take(f"BatchNormalization's statistics follow in {follow:,} steps; an epoch has {steps:,}", bn_momentum=momentum)
    return choices.made


def lines(choices: Sequence[Choice]) -> list[str]:
    """The choices with their reasons, for the terminal."""
    width = max((len(str(choice)) for choice in choices), default=0)
    return [f"  {choice!s:{width}}  {choice.reason}" for choice in choices]


def too_few_updates(steps_per_epoch: int, epochs: int, iter_size: int) -> str:
    """What to say if a run has too few updates to learn, "" if it has enough.

    Args:
        steps_per_epoch: of the training.
        epochs: of the whole run.
        iter_size: steps of an update.

    Raises:
        UserError: the run ends before its first update.
    """
    steps = steps_per_epoch * epochs
    updates = steps // iter_size
    if not updates:
        what = f"an update takes {iter_size:,} steps, but the whole run has {steps:,}: nothing would be trained"
        raise UserError(what, remedy="choose a smaller iter_size", setting="iter_size")
    if updates >= _FEW_UPDATES:
        return ""
    many = f"only {updates:,} update{'s' * (updates != 1)}"
    return f"{many} in the whole run, too few to learn much: train more epochs, or with fewer images an update"


def slow_statistics(momentum: float, steps: int) -> str:
    """What to say if BatchNormalization's moving statistics stay near their initial values, "" if they do not.

    Args:
        momentum: the largest of the model.
        steps: of the whole run.
    """
    if (left := momentum**steps) <= _TOO_MUCH:
        return ""
    what = f"BatchNormalization's momentum {momentum:g} is too slow for {steps:,} steps: {left:.0%} of the initial"
    return f"{what} statistics will be left at the end, so validation will be worse than training"


def _batch_size(records: int, image_size: int, epochs: int | None) -> tuple[int, str]:
    """A power of two that leaves enough updates to the run, and why it is this one."""
    most = _power_of_two(_LARGEST_AT_224 * (224 / max(1, image_size)) ** 2)
    most = max(_SMALLEST_BATCH, min(_LARGEST_BATCH, most))
    counted = min(max(1, epochs or _COUNTED_EPOCHS), _COUNTED_EPOCHS)
    wanted = _power_of_two(records * counted / _WANTED_UPDATES)
    size = max(1, min(records, max(_SMALLEST_BATCH, min(wanted, most))))
    if wanted > most:
        return size, f"as many as usually fit into memory at {image_size} pixels"
    return size, "so few that the run has many updates"


def _rate(known: Mapping[str, Any], aim: _Aim) -> tuple[float, str]:
    """The learning rate for the optimizer and the images of an update, and why it is this one."""
    optimizer, images = known["optimizer"], known["batch_size"] * known["iter_size"]
    images = max(1, known.get("lr_reference_batch") or images)
    scale = images / _REFERENCE_IMAGES
    rate = _RATES.get(optimizer, _USUAL_RATE) * (scale if optimizer == "sgd" else math.sqrt(scale)) * aim.rate
    less = f"; {aim.rate:g} of it, because the weights are trained" if aim is _TRAINED else ""
    return float(f"{rate:.2g}"), f"of {optimizer} for {images:,} images an update{less}"


def _final_rate(schedule: str, initial_rate: float) -> float:
    """The rate of the last epoch. A linear schedule has it for the whole epoch, so there it must not be 0."""
    if schedule == "constant":
        return initial_rate
    return initial_rate * _LAST_SHARE if schedule in ("linear", "exp") else 0.0


def _power_of_two(value: float) -> int:
    """The largest power of two that is not above a value; at least 1."""
    return 1 << max(0, int(value).bit_length() - 1)
