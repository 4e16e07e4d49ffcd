"""Counts of an evaluation: accuracy, confusions, calibration. Needs NumPy only.

Memory grows with the classes and with the pairs of classes that were confused, not with all pairs.
"""

import math
from collections import Counter
from heapq import nsmallest
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kimagenet.training.results import Shares

if TYPE_CHECKING:
    from kimagenet.inference.outputs import Outputs

CALIBRATION_BINS = 15


class ClassCount(NamedTuple):
    """The counts of one class.

    Attributes:
        name: its name.
        records: records of this class.
        top1_correct: of these, how many have it as the most probable class.
        top5_correct: of these, how many have it among the five most probable classes.
        taken_for: the other class that was predicted most often, or None.
    """

    name: str
    records: int
    top1_correct: int
    top5_correct: int
    taken_for: str | None


class Confusion(NamedTuple):
    """A class that was taken for another one.

    Attributes:
        label: the name of the class.
        predicted: the name of the other class.
        records: how many records of `label` were taken for it.
        share: of the records of `label`.
    """

    label: str
    predicted: str
    records: int
    share: float


class Bin(NamedTuple):
    """The records whose most probable class has a probability in (low, high].

    Attributes:
        low: lower edge.
        high: upper edge.
        records: how many.
        confidence: mean of these probabilities; None without records.
        accuracy: share of correct records; None without records.
    """

    low: float
    high: float
    records: int
    confidence: float | None
    accuracy: float | None


class Tally(Shares):
    """Adds up batches of `Outputs`. Padding is not counted, and NaN is never correct.

    Args:
        classes: names in label order.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        count = len(classes)
        self._names = classes
        self._wrong: Counter[tuple[int, int]] = Counter()  # by (label, most probable class) where these differ
        self._records, self._top1, self._top5 = np.zeros((3, count), np.int64)
        self._loss = 0.0
        self._bins = np.zeros((3, CALIBRATION_BINS))  # records, sum of confidences, correct records

    def add(self, outputs: "Outputs") -> None:
        """Adds a batch."""
        real = outputs.weights > 0
        labels, classes = outputs.labels[real], outputs.classes[real]
        confidence = outputs.probabilities[real, 0].astype(np.float64)
        right = (classes == labels[:, None]) & np.isfinite(confidence)[:, None]
        wrong = labels != classes[:, 0]
        self._wrong.update(zip(labels[wrong].tolist(), classes[wrong, 0].tolist(), strict=True))
        np.add.at(self._records, labels, 1)
        np.add.at(self._top1, labels, right[:, 0])
        np.add.at(self._top5, labels, right[:, :5].any(axis=1))
        self._loss += float(outputs.losses[real].sum(dtype=np.float64))
        held = np.clip(np.ceil(np.nan_to_num(confidence) * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1)
        for row, values in enumerate((np.ones_like(confidence), confidence, right[:, 0])):
            self._bins[row] += np.bincount(held.astype(int), values, CALIBRATION_BINS)

    @property
    def records(self) -> int:
        """How many records were counted."""
        return int(self._records.sum())

    @property
    def top1_correct(self) -> int:
        """Records whose most probable class is correct."""
        return int(self._top1.sum())

    @property
    def top5_correct(self) -> int:
        """Records whose class is among the five most probable."""
        return int(self._top5.sum())

    @property
    def loss(self) -> float:
        """The mean cross-entropy."""
        return self._loss / self.records

    def classes(self) -> list[ClassCount]:
        """The counts of all classes, in label order."""
        worst: dict[int, int] = {}
        for (label, predicted), _ in sorted(self._wrong.items(), key=_by_count):
            worst.setdefault(label, predicted)
        counts = zip(self._names, *(part.tolist() for part in (self._records, self._top1, self._top5)), strict=True)
        return [
            ClassCount(name, records, top1, top5, self._names[worst[label]] if label in worst else None)
            for label, (name, records, top1, top5) in enumerate(counts)
        ]

    def confusions(self, most: int) -> list[Confusion]:
        """The `most` frequent confusions; those with equal counts in label order."""
        return [
            Confusion(self._names[label], self._names[predicted], count, count / int(self._records[label]))
            for (label, predicted), count in nsmallest(most, self._wrong.items(), key=_by_count)
        ]

    def bins(self) -> list[Bin]:
        """The calibration table: 15 bins of equal width."""
        edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
        return [
            Bin(low, high, int(n), total / n if n else None, right / n if n else None)
            for low, high, n, total, right in zip(
                edges[:-1].tolist(), edges[1:].tolist(), *self._bins.tolist(), strict=True
            )
        ]

    def calibration_error(self) -> float:
        """Σ over the bins of their share of the records × |accuracy − mean confidence| (Guo et al., arXiv 1706.04599).

        NaN if a probability is NaN.
        """
        records, confidence, right = self._bins
        return math.fsum(np.abs(right - confidence)) / float(records.sum())


def _by_count(item: tuple[tuple[int, int], int]) -> tuple[int, tuple[int, int]]:
    """Sorts confusions by their counts, the largest first, and equal counts in label order."""
    return -item[1], item[0]
