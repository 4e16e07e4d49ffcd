"""Random numbers that belong to a record: a pure function of seed, epoch, record and column.

No stream is consumed. So a draw does not change when other records are left out, when reading starts in the middle of
an epoch, or when an epoch is split among ranks or planned in segments.
"""

from dataclasses import dataclass

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class RecordUniform:
    """Uniform numbers for some records in one epoch of one seed.

    A column is a stream of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
    2014). NumPy's SeedSequence gives its state for (seed, epoch, column); the record's number is the place in it.

    Attributes:
        seed: from 0.
        epoch: from 0.
        records: int64 [N], record numbers.
    """

    seed: int
    epoch: int
    records: np.ndarray

    def __call__(self, column: int) -> np.ndarray:
        """Returns float64 [N] in [0, 1), independent for each (record, column)."""
        key = np.random.SeedSequence((self.seed, self.epoch, column)).generate_state(1, np.uint64)
        bits = _mix(self.records.astype(np.uint64) * _GOLDEN + key)
        return (bits >> np.uint64(11)) * 2.0**-53

    def select(self, chosen: np.ndarray) -> "RecordUniform":
        """The same numbers for some of the records, given as a mask or as positions."""
        return RecordUniform(self.seed, self.epoch, self.records[chosen])


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # modulo 2^64, as NumPy arrays do
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
