"""Counts of an evaluation, in constant memory: accuracy, confusions, calibration. Needs NumPy only."""

import math
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
        self._confusion = np.zeros((count, count), np.int64)  # [label, most probable class]
        self._top1, self._top5 = np.zeros((2, count), np.int64)
        self._loss = 0.0
        self._bins = np.zeros((3, CALIBRATION_BINS))  # records, sum of confidences, correct records

    def add(self, outputs: "Outputs") -> None:
        """Adds a batch."""
        real = outputs.weights > 0
        labels, classes = outputs.labels[real], outputs.classes[real]
        confidence = outputs.probabilities[real, 0].astype(np.float64)
        right = (classes == labels[:, None]) & np.isfinite(confidence)[:, None]
        np.add.at(self._confusion, (labels, classes[:, 0]), 1)
        np.add.at(self._top1, labels, right[:, 0])
        np.add.at(self._top5, labels, right[:, :5].any(axis=1))
        self._loss += float(outputs.losses[real].sum(dtype=np.float64))
        held = np.clip(np.ceil(np.nan_to_num(confidence) * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1)
        for row, values in enumerate((np.ones_like(confidence), confidence, right[:, 0])):
            self._bins[row] += np.bincount(held.astype(int), values, CALIBRATION_BINS)

    @property
    def records(self) -> int:
        """How many records were counted."""
        return int(self._confusion.sum())

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
        wrong = self._wrong()
        worst = wrong.argmax(axis=1)
        counts = zip(self._names, self._confusion.sum(axis=1), self._top1, self._top5, strict=True)
        return [
            ClassCount(name, int(records), int(top1), int(top5), self._names[worst[i]] if wrong[i, worst[i]] else None)
            for i, (name, records, top1, top5) in enumerate(counts)
        ]

    def confusions(self, most: int) -> list[Confusion]:
        """The `most` frequent confusions; those with equal counts in label order."""
        wrong = self._wrong()
        pairs = np.argsort(-wrong, axis=None, kind="stable")[:most]
        found = []
        for label, predicted in zip(*np.unravel_index(pairs, wrong.shape), strict=True):
            if count := int(wrong[label, predicted]):
                share = count / int(self._confusion[label].sum())
                found.append(Confusion(self._names[label], self._names[predicted], count, share))
        return found

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

    def _wrong(self) -> np.ndarray:
        return self._confusion * (1 - np.eye(len(self._names), dtype=np.int64))
