"""An order of records, as all versions have it: for any range of positions, never in memory as a whole."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np


@dataclass(frozen=True, eq=False)
class Order(ABC):
    """A permutation of records.

    Attributes:
        records: int64 [N], ascending.
        has_runs: whether most neighbours are in the same shard.
    """

    records: np.ndarray
    has_runs: ClassVar[bool] = False

    @property
    def length(self) -> int:
        """The number of positions."""
        return len(self.records)

    def without(self, skipped: Sequence[int]) -> "Order":
        """The same order without some records; those before the first of them keep their positions."""
        return Without(self.records, self, tuple(skipped)) if skipped else self

    @abstractmethod
    def between(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop − start]: the picks at the positions `start` … `stop` − 1.

        A pick is a record. In an order that has a record several times, a multiple of the split's number of records is
        added to it from the second time on, so that each pick has random numbers that belong to it.
        """

    @abstractmethod
    def positions(self, records: np.ndarray) -> np.ndarray:
        """int64: the position of each of the given records, all of which are in the order."""

    def together(self, records: np.ndarray) -> np.ndarray:
        """The neighbours in a shard that the order brings at nearly the same time, so that one request reads them.

        Args:
            records: int64 [K], in the order.

        Returns:
            int64 [K, 2]: for each of the records the first and the last record of its block, itself included.
        """
        return np.stack([records, records], axis=1)

    def deal(self, batches: np.ndarray, ranks: int) -> np.ndarray:
        """Divides global batches among ranks. Together the parts of a batch are the batch.

        Args:
            batches: int64 [S, B], the records of S global batches.
            ranks: how many parts; divides B.

        Returns:
            int64 [S, ranks, B / ranks].
        """
        return deal_evenly(batches, ranks)


def deal_evenly(batches: np.ndarray, ranks: int) -> np.ndarray:
    """Gives each rank consecutive positions; see `Order.deal`."""
    return batches.reshape(len(batches), ranks, batches.shape[1] // ranks)


class FileOrder(Order):
    """The records as they are numbered: for evaluation."""

    has_runs = True

    def between(self, start: int, stop: int) -> np.ndarray:
        return self.records[start:stop]

    def positions(self, records: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.records, records)


class WholeShuffle(Order):
    """A random permutation of all records, calculated as a whole."""

    @abstractmethod
    def permuted(self) -> np.ndarray:
        """int64 [N]: the records in their order."""

    @cached_property
    def _order(self) -> np.ndarray:
        return self.permuted()

    def between(self, start: int, stop: int) -> np.ndarray:
        return self._order[start:stop]

    def positions(self, records: np.ndarray) -> np.ndarray:
        by_record = np.argsort(self._order, kind="stable")
        return by_record[np.searchsorted(self.records, records)]


@dataclass(frozen=True, eq=False)
class Without(Order):
    """An order without some of its records.

    Attributes:
        order: the whole order, of the same `records`.
        skipped: the records to leave out; those that the order does not have are ignored.
    """

    order: Order
    skipped: tuple[int, ...]

    @cached_property
    def _gaps(self) -> np.ndarray:
        """The positions of the skipped records in the whole order, ascending."""
        skipped = np.unique(np.array(self.skipped, np.int64))
        places = np.minimum(np.searchsorted(self.records, skipped), len(self.records) - 1)
        return np.sort(self.order.positions(skipped[self.records[places] == skipped]))

    @property
    def length(self) -> int:
        return len(self.records) - len(self._gaps)

    def between(self, start: int, stop: int) -> np.ndarray:
        if start >= stop:
            return self.records[:0]
        closed = self._gaps - np.arange(len(self._gaps))  # where each gap would be if those before it were closed
        first, last = (position + np.searchsorted(closed, position, side="right") for position in (start, stop - 1))
        found = self.order.between(int(first), int(last) + 1)
        return found[~np.isin(found, self.skipped)]

    def positions(self, records: np.ndarray) -> np.ndarray:
        whole = self.order.positions(records)
        return whole - np.searchsorted(self._gaps, whole)

    def together(self, records: np.ndarray) -> np.ndarray:
        return self.order.together(records)

    def deal(self, batches: np.ndarray, ranks: int) -> np.ndarray:
        return self.order.deal(batches, ranks)
