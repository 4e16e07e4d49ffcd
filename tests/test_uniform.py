"""RecordUniform: numbers that belong to seed, epoch, record and column."""

import numpy as np
import pytest

from pipelines.uniform import RecordUniform


def test_numbers_belong_to_the_record() -> None:
    records = np.array([5, 99, 1_000_000])
    whole = RecordUniform(3, 7, np.arange(1_000_001))(2)
    np.testing.assert_array_equal(RecordUniform(3, 7, records)(2), whole[records])
    for other in (RecordUniform(4, 7, records)(2), RecordUniform(3, 8, records)(2), RecordUniform(3, 7, records)(1)):
        assert not np.any(other == whole[records])
    sample = whole[:200_000]
    np.testing.assert_allclose(np.histogram(sample, 20, (0, 1))[0] / 200_000, 0.05, atol=0.002)
    assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 0.01


def test_numbers_are_splitmix64s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published test values of the generator: the first five of the stream from state 1234567."""
    asked = []

    class Key:
        def __init__(self, words: tuple[int, ...]) -> None:
            asked.append(words)

        def generate_state(self, count: int, dtype: type) -> np.ndarray:
            return np.full(count, 1234567, dtype)

    monkeypatch.setattr(np.random, "SeedSequence", Key)
    published = np.array(
        [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821],
        np.uint64,
    )
    found = RecordUniform(3, 7, np.arange(1, 6))(2)
    assert asked == [(3, 7, 2)]
    np.testing.assert_array_equal(found, (published >> np.uint64(11)) / 2**53)
