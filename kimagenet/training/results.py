"""Results of training and evaluation: sums over steps, the position in a run, accuracy."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Totals:
    """Sums over training steps. The difference of two is the sum over the steps between them.

    Attributes:
        steps: steps whose loss is known.
        loss: sum of their mean losses.
        top1: sum of their top-1 shares.
        images: images of the steps after the warm-up.
        seconds: the time of these steps.
        waited: the part of it spent waiting for data, seconds.
        samples: how often it was looked for what the run waits, in these steps.
        in_storage: how often of these it waited for the storage; see `kimagenet.training.waits`.
    """

    steps: int = 0
    loss: float = 0.0
    top1: float = 0.0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    samples: int = 0
    in_storage: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def __sub__(self, other: "Totals") -> "Totals":
        return Totals(*(a - b for a, b in zip(self._values(), other._values(), strict=True)))

    def _values(self) -> tuple[Any, ...]:
        return dataclasses.astuple(self)

    def means(self) -> dict[str, float]:
        """Mean loss and top-1; empty before the first step."""
        return {"loss": self.loss / self.steps, "top1": self.top1 / self.steps} if self.steps else {}

    def speed(self) -> dict[str, float]:
        """Images per second, the share of time spent waiting for data, and of it for storage; empty in the warm-up."""
        if not self.images:
            return {}
        wait = self.waited / self.seconds
        in_storage = min(wait, self.in_storage / self.samples) if self.samples else 0.0
        return {"images_per_second": self.images / self.seconds, "data_wait": wait, "storage_wait": in_storage}


@dataclass(frozen=True)
class Position:
    """The position of a run between two steps.

    Attributes:
        epoch: the epoch of the next step, from 0.
        step: the next step in it, from 0.
        totals: sums over the earlier steps of the epoch.
        best_top1: the highest validation top-1 of the earlier epochs, or −1.
        data_epoch: the first epoch that was validated with the present data set.
    """

    epoch: int = 0
    step: int = 0
    totals: Totals = Totals()
    best_top1: float = -1.0
    data_epoch: int = 0


class Shares:
    """Base of results with counts: gives their shares of all records."""

    records: Any
    top1_correct: Any
    top5_correct: Any

    @property
    def top1(self) -> float:
        """The share of records whose most probable class is correct."""
        return self.top1_correct / self.records

    @property
    def top5(self) -> float:
        """The share of records whose class is among the five most probable."""
        return self.top5_correct / self.records


@dataclass(frozen=True)
class Evaluation(Shares):
    """An exact evaluation: every record is counted once.

    Attributes:
        records: records counted.
        top1_correct: records whose most probable class is correct.
        top5_correct: records whose class is among the five most probable.
        loss: mean cross-entropy.
    """

    records: int
    top1_correct: int
    top5_correct: int
    loss: float
