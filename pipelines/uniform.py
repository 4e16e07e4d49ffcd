"""Random numbers that belong to a record: a pure function of seed, epoch, record and column.

No stream is consumed, so a draw does not change when other records are left out, when the reading starts in the
middle, or when an epoch is split among ranks or planned in segments.
"""

from dataclasses import dataclass

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, eq=False)
class RecordUniform:
    """Uniform numbers for `records` (int64 [N]) in one epoch of one seed.

    Each column is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014)
    at the record's place in the stream that NumPy's SeedSequence gives for (seed, epoch, column).
    """

    seed: int
    epoch: int
    records: np.ndarray

    def __call__(self, column: int) -> np.ndarray:
        """float64 [N] in [0, 1): independent for each (record, column)."""
        key = np.random.SeedSequence((self.seed, self.epoch, column)).generate_state(1, np.uint64)
        bits = _mix(self.records.astype(np.uint64) * _GOLDEN + key)
        return (bits >> np.uint64(11)) * 2.0**-53

    def select(self, chosen: np.ndarray) -> "RecordUniform":
        """The same numbers for some of the records (a mask or positions)."""
        return RecordUniform(self.seed, self.epoch, self.records[chosen])


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # modulo 2^64, as NumPy's arrays count
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
