"""Random numbers that belong to a record: a pure function of seed, epoch, record and column.

No stream is consumed. So a draw does not change when other records are left out, when reading starts in the middle of
an epoch, or when an epoch is split among ranks or planned in segments.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WORD, _POOL = 0xFFFFFFFF, 4


@dataclass(frozen=True, eq=False)
class RecordUniform:
    """Uniform numbers for some records in one epoch of one seed.

    A column is a stream of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
    2014). `stream_start` gives its state for (seed, epoch, column), of further copies of a record for (seed, epoch,
    column, copy); the record's number is the place in it.

    Attributes:
        seed: from 0.
        epoch: from 0.
        records: int64 [N], record numbers.
        copies: int64 [N], from 0, where records occur several times in an epoch, each time with other numbers; None: 0.
    """

    seed: int
    epoch: int
    records: np.ndarray
    copies: np.ndarray | None = None

    def __call__(self, column: int) -> np.ndarray:
        """Returns float64 [N] in [0, 1), independent for each (record, column)."""
        return (self.bits(column) >> np.uint64(11)) * 2.0**-53

    def bits(self, column: int) -> np.ndarray:
        """Returns uint64 [N], 64 random bits for each (record, column)."""
        keys = np.array([stream_start(self.seed, self.epoch, column)], np.uint64)
        if self.copies is not None:
            further = range(1, int(self.copies.max(initial=0)) + 1)
            more = [stream_start(self.seed, self.epoch, column, copy) for copy in further]
            keys = np.append(keys, np.array(more, np.uint64))[self.copies]
        return _mix(self.records.astype(np.uint64) * _GOLDEN + keys)

    def select(self, chosen: np.ndarray) -> "RecordUniform":
        """The same numbers for some of the records, given as a mask or as positions."""
        copies = None if self.copies is None else self.copies[chosen]
        return RecordUniform(self.seed, self.epoch, self.records[chosen], copies)


@lru_cache(maxsize=1024)
def stream_start(*numbers: int) -> int:
    """64 bits that belong to some numbers from 0 on: the hash of Melissa O'Neill's `seed_seq_fe128`.

    The result is that of NumPy's `SeedSequence(numbers).generate_state(1, np.uint64)`, whatever NumPy is installed.
    """
    words = [word for number in numbers for word in _words(int(number))]
    words += [0] * (_POOL - len(words))
    hashed = _Hash(0x43B0D7E5, 0x931E8875)
    pool = [hashed(word) for word in words[:_POOL]]
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                pool[target] = _joined(pool[target], hashed(pool[source]))
    for word in words[_POOL:]:
        for target in range(_POOL):
            pool[target] = _joined(pool[target], hashed(word))
    hashed = _Hash(0x8B51F9DD, 0x58F38DED)
    low, high = (hashed(word) for word in pool[:2])
    return high << 32 | low


def _words(number: int) -> list[int]:
    """The words of 32 bits of a number, the lowest first."""
    return [number >> shift & _WORD for shift in range(0, max(1, number.bit_length()), 32)]


class _Hash:
    """Hashes one word after the other, each with the next multiplier."""

    def __init__(self, multiplier: int, factor: int) -> None:
        self._multiplier, self._factor = multiplier, factor

    def __call__(self, word: int) -> int:
        word ^= self._multiplier
        self._multiplier = self._multiplier * self._factor & _WORD
        word = word * self._multiplier & _WORD
        return word ^ word >> 16


def _joined(a: int, b: int) -> int:
    mixed = 0xCA01F9DD * a - 0x4973F715 * b & _WORD
    return mixed ^ mixed >> 16


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # modulo 2^64, as NumPy arrays do
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
