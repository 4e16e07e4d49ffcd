"""Learning rate schedules: pure functions of the position in fractional epochs. No TensorFlow.

Schedule("cosine", initial_lr=0.1, final_lr=0.0, epochs=90, warmup_epochs=5).at(epoch + step / steps_per_epoch)
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.errors import UserError
from pipelines.ranges import check_ranges, within
from pipelines.system.files import atomic_writer

NAMES = ("linear", "exp", "cosine", "step", "constant")


@dataclass(frozen=True)
class Schedule:
    """The learning rate λ(t) at t fractional epochs.

    With l₀ = initial_lr, l₁ = final_lr, E = epochs, W = warmup_epochs and e = ⌊t⌋:

    * linear: l₁ + (l₀ − l₁)·(E − 1 − e)/(E − 1), constant within an epoch, as the original; E = 1 gives l₀
    * exp: l₀·(l₁/l₀)^(e/(E − 1)), constant within an epoch, as the original; E = 1 gives l₀
    * cosine: l₁ + (l₀ − l₁)·(1 + cos(π·(t − W)/(E − W)))/2, every step (SGDR without restarts, arXiv 1608.03983)
    * step: max(l₀·step_factor^⌊e/step_epochs⌋, l₁), a staircase (arXiv 1512.03385 divides by 10 every 30 epochs)
    * constant: l₀

    While t < W the rate is λ(W)·t/W, every step (arXiv 1706.02677, section 2.2, from zero): it meets the schedule at W.

    Attributes:
        name: one of `NAMES`.
        initial_lr: learning rate of the first epoch, > 0.
        final_lr: learning rate of the last epoch, ≥ 0; > 0 for exp.
        epochs: length of the training, ≥ 1.
        warmup_epochs: length of the linear warm-up, less than `epochs`.
        step_epochs: step only: epochs from one step to the next, ≥ 1.
        step_factor: step only: what each step multiplies the rate by, in (0, 1).

    Raises:
        UserError: a field is out of its range.
    """

    name: str
    initial_lr: float = field(metadata=within(above=0))
    final_lr: float = field(metadata=within(at_least=0))
    epochs: int = field(metadata=within(at_least=1))
    warmup_epochs: float = field(default=0.0, metadata=within(at_least=0))
    step_epochs: int = field(default=30, metadata=within(at_least=1))
    step_factor: float = field(default=0.1, metadata=within(above=0, below=1))

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UserError(f"a schedule is one of {', '.join(NAMES)}, not {self.name!r}", setting="name")
        check_ranges(self)
        if self.name == "exp" and self.final_lr == 0:
            raise UserError("an exp schedule needs a final_lr greater than 0", setting="final_lr")
        if self.warmup_epochs >= self.epochs:
            what = f"warmup_epochs must be less than epochs ({self.epochs}), not {self.warmup_epochs}"
            raise UserError(what, setting="warmup_epochs")

    def at(self, epoch_position: float) -> float:
        """The learning rate at a position.

        Args:
            epoch_position: epoch + step / steps_per_epoch, both from 0. Positions after the last epoch have its rate.
                The first step of a warm-up has a rate of 0: give (step + 1) / steps_per_epoch to avoid that.
        """
        position = min(max(epoch_position, 0.0), float(self.epochs))
        if position < self.warmup_epochs:
            return self._plain(self.warmup_epochs) * position / self.warmup_epochs
        return self._plain(position)

    def _plain(self, position: float) -> float:
        """The rate without warm-up."""
        first, last = self.initial_lr, self.final_lr
        epoch = min(math.floor(position), self.epochs - 1)
        done = epoch / (self.epochs - 1) if self.epochs > 1 else 0.0
        if self.name == "linear":
            return last + (first - last) * (1.0 - done)
        if self.name == "exp":
            return first * (last / first) ** done
        if self.name == "cosine":
            share = (position - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
            return last + (first - last) * (1.0 + math.cos(math.pi * share)) / 2.0
        if self.name == "step":
            return max(first * self.step_factor ** (epoch // self.step_epochs), last)
        return first


def linear_scaled(learning_rate: float, batch_size: int, reference_batch_size: int = 256) -> float:
    """The linear scaling rule (arXiv 1706.02677): rate × batch / reference.

    Args:
        learning_rate: the rate for the reference batch.
        batch_size: images per update.
        reference_batch_size: images per update that `learning_rate` was chosen for.
    """
    return learning_rate * batch_size / reference_batch_size


def plot(schedule: Schedule, path: Path) -> None:
    """Plots the rate over the epochs into a PNG file.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        what = "plotting a schedule needs the package matplotlib"
        raise UserError(what, remedy="`pip install matplotlib`") from None
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    points = max(2000, 20 * schedule.epochs)
    positions = [schedule.epochs * point / points for point in range(points)]
    axes.plot(positions, [schedule.at(position) for position in positions])
    axes.set(xlabel="epoch", ylabel="learning rate", title=f"{schedule.name}, {schedule.epochs} epochs", ylim=(0, None))
    axes.grid(alpha=0.3)
    with atomic_writer(path) as stream:
        figure.savefig(stream, format="png", dpi=110)
