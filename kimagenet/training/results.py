"""What training and evaluation count: sums over steps, the position in a run, an evaluation's accuracy."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Totals:
    """Sums over training steps; a difference of two is the sum over the steps between them.

    Attributes:
        steps: steps whose loss is known. loss, top1: sums of the steps' means.
        images, seconds, waited: of the steps after the warm-up; `waited` is the time in the data's `next`.
    """

    steps: int = 0
    loss: float = 0.0
    top1: float = 0.0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def __sub__(self, other: "Totals") -> "Totals":
        return Totals(*(a - b for a, b in zip(self._values(), other._values(), strict=True)))

    def _values(self) -> tuple[Any, ...]:
        return self.steps, self.loss, self.top1, self.images, self.seconds, self.waited

    def means(self) -> dict[str, float]:
        """Mean loss and top-1; empty before the first step."""
        return {"loss": self.loss / self.steps, "top1": self.top1 / self.steps} if self.steps else {}

    def speed(self) -> dict[str, float]:
        """Images per second, and the share of the time spent waiting for data; empty within the warm-up."""
        if not self.images:
            return {}
        return {"images_per_second": self.images / self.seconds, "data_wait": self.waited / self.seconds}


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next step is step `step` of epoch `epoch`, both from 0.

    Attributes:
        totals: of the epoch's steps before. best_top1: the highest validation top-1 of the epochs before, or −1.
    """

    epoch: int = 0
    step: int = 0
    totals: Totals = Totals()
    best_top1: float = -1.0


class Shares:
    """What counts of right ones among all records come to."""

    records: Any
    top1_correct: Any
    top5_correct: Any

    @property
    def top1(self) -> float:
        """The share of records whose most probable class is right."""
        return self.top1_correct / self.records

    @property
    def top5(self) -> float:
        """The share of records whose class is among the five most probable."""
        return self.top5_correct / self.records


@dataclass(frozen=True)
class Evaluation(Shares):
    """An exact evaluation: every record counted once. `loss` is the mean cross-entropy."""

    records: int
    top1_correct: int
    top5_correct: int
    loss: float
