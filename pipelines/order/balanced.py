"""An order with as many records of each class in an epoch. Records of rare classes come several times."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipelines.order.base import Order
from pipelines.uniform import RecordUniform

# Columns of random numbers, far from those of the augmentation and of the other orders.
_RECORD, _CLASS, _PLACE = range(1 << 22, (1 << 22) + 3)


@dataclass(frozen=True, eq=False)
class BalancedOrder(Order):
    """Each class that has records gets N / C of the N positions; some get one more, others in each epoch.

    1. The records of each class are shuffled, in another way in each epoch. The class takes as many of them as it has
       positions, and begins again after the last one. So a record comes at most once more often than another one of its
       class, and of a large class other records come in each epoch.
    2. The positions are shuffled as a whole.

    A pick is `record + stride × copy`: the first time in an epoch a record is copy 0, the next time copy 1, and so on.

    Attributes:
        labels: int64 [N], the class of each of `records`.
        stride: more than every record.
        seed: from 0.
        epoch: from 0.
        skipped: records that are left out. Others of their class take their places, so no other record moves.
    """

    labels: np.ndarray
    stride: int
    seed: int
    epoch: int
    skipped: tuple[int, ...] = ()

    def without(self, skipped: Sequence[int]) -> "Order":
        return replace(self, skipped=tuple(skipped))

    def between(self, start: int, stop: int) -> np.ndarray:
        return self._picks[start:stop]

    def positions(self, records: np.ndarray) -> np.ndarray:
        """int64: the first position of each of the given records; N for those that this epoch does not have."""
        picked = self._picks % self.stride
        order = np.argsort(picked, kind="stable")
        found = np.searchsorted(picked, records, sorter=order)
        first = order[np.minimum(found, len(order) - 1)]
        return np.where(picked[first] == records, first, len(picked))

    @cached_property
    def _picks(self) -> np.ndarray:
        """int64 [N]: the pick at each position."""
        class_of, counts = np.unique(self.labels, return_inverse=True, return_counts=True)[1:]
        by_class = self.records[np.lexsort((self._bits(self.records, _RECORD), class_of))]
        starts = np.cumsum(counts) - counts
        quotas = np.full(len(counts), len(self.records) // len(counts))
        chosen = np.argsort(self._bits(np.arange(len(counts)), _CLASS), kind="stable")
        quotas[chosen[: len(self.records) % len(counts)]] += 1
        of_class = np.repeat(np.arange(len(counts)), quotas)
        turn = np.arange(len(of_class)) - np.repeat(np.cumsum(quotas) - quotas, quotas)
        place, copy = starts[of_class] + turn % counts[of_class], turn // counts[of_class]
        if self.skipped:
            replaced = self._replacements(by_class, starts, counts)[place]
            copy = np.where(replaced == place, copy, copy + copy.max() + 1)  # other draws than those of its copies
            place = replaced
        order = np.argsort(self._bits(np.arange(len(place)), _PLACE), kind="stable")
        return (by_class[place] + self.stride * copy)[order]

    def _replacements(self, by_class: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """int64 [N]: for each place in `by_class` itself, or the next place in its class whose record is not skipped.

        If a whole class is skipped, the next place of all.
        """
        is_left = ~np.isin(by_class, self.skipped)
        found, left = np.arange(len(by_class)), np.flatnonzero(is_left)
        for place in np.flatnonzero(~is_left).tolist():
            number = np.searchsorted(starts, place, side="right") - 1
            low, high = np.searchsorted(left, [starts[number], starts[number] + counts[number]])
            own = left[low:high] if low < high else left
            found[place] = own[np.searchsorted(own, place) % len(own)]
        return found

    def _bits(self, numbers: np.ndarray, column: int) -> np.ndarray:
        return RecordUniform(self.seed, self.epoch, numbers).bits(column)
