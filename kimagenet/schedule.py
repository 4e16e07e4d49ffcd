"""Learning rate schedules: pure functions of the position in fractional epochs. No TensorFlow.

Schedule("cosine", initial_lr=0.1, final_lr=0.0, epochs=90, warmup_epochs=5).at(epoch + step / steps_per_epoch)
"""

import math
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.system.files import atomic_writer

NAMES = ("linear", "exp", "cosine", "step", "constant")


@dataclass(frozen=True)
class Schedule:
    """The learning rate λ(t) at t fractional epochs, for one of `NAMES`.

    With l₀ = initial_lr, l₁ = final_lr, E = epochs, W = warmup_epochs and e = ⌊t⌋:

    * linear: l₁ + (l₀ − l₁)·(E − 1 − e)/(E − 1), constant within an epoch, as the original; E = 1 gives l₀
    * exp: l₀·(l₁/l₀)^(e/(E − 1)), constant within an epoch, as the original; E = 1 gives l₀
    * cosine: l₁ + (l₀ − l₁)·(1 + cos(π·(t − W)/(E − W)))/2, every step (SGDR without restarts, arXiv 1608.03983)
    * step: max(l₀·step_factor^⌊e/step_epochs⌋, l₁), a staircase (arXiv 1512.03385 divides by 10 every 30 epochs)
    * constant: l₀

    While t < W the rate is λ(W)·t/W, every step (arXiv 1706.02677, section 2.2, from zero): it meets the schedule at W.
    Give the position at the end of a step, (step + 1) / steps_per_epoch, if the first step shall not have a rate of 0.
    Positions past the end keep the last epoch's rate. Raises `UserError` on a bad field.
    """

    name: str
    initial_lr: float
    final_lr: float
    epochs: int
    warmup_epochs: float = 0.0
    step_epochs: int = 30
    step_factor: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UserError(f"schedule: name is one of {', '.join(NAMES)}, not {self.name!r}")
        if not (self.initial_lr > 0 and math.isfinite(self.initial_lr)):
            raise UserError(f"schedule: initial_lr must be positive, not {self.initial_lr}")
        if not (self.final_lr >= 0 and math.isfinite(self.final_lr)):
            raise UserError(f"schedule: final_lr must not be negative, not {self.final_lr}")
        if self.name == "exp" and self.final_lr == 0:
            raise UserError("schedule: exp needs a positive final_lr")
        if self.epochs < 1:
            raise UserError(f"schedule: epochs must be at least 1, not {self.epochs}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise UserError(f"schedule: warmup_epochs must be in [0, epochs = {self.epochs}), not {self.warmup_epochs}")
        if self.step_epochs < 1:
            raise UserError(f"schedule: step_epochs must be at least 1, not {self.step_epochs}")
        if not 0 < self.step_factor < 1:
            raise UserError(f"schedule: step_factor must be in (0, 1), not {self.step_factor}")

    def at(self, epoch_position: float) -> float:
        """The learning rate at `epoch_position` = epoch + step / steps_per_epoch, both counted from 0."""
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
    """The linear scaling rule: rate × batch / reference (arXiv 1706.02677); batch = images per update."""
    return learning_rate * batch_size / reference_batch_size


def plot(schedule: Schedule, path: Path) -> None:
    """Draws the rate over the epochs into a PNG. Raises `UserError` where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot-schedule needs matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    points = max(2000, 20 * schedule.epochs)
    positions = [schedule.epochs * point / points for point in range(points)]
    axes.plot(positions, [schedule.at(position) for position in positions])
    axes.set(xlabel="epoch", ylabel="learning rate", title=f"{schedule.name}, {schedule.epochs} epochs", ylim=(0, None))
    axes.grid(alpha=0.3)
    with atomic_writer(path) as stream:
        figure.savefig(stream, format="png", dpi=110)
