"""RecordUniform: numbers that belong to seed, epoch, record and column."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.uniform import RecordUniform, stream_start

GOLDEN = ["0x2e5972eaa60f3400", "0x4dab89c83b6df8c9", "0x4130e18ec738357c", "0xa4c302c168d16187"]


def test_numbers_belong_to_the_record() -> None:
    records = np.array([5, 99, 1_000_000])
    whole = RecordUniform(3, 7, np.arange(1_000_001))(2)
    np.testing.assert_array_equal(RecordUniform(3, 7, records)(2), whole[records])
    for other in (RecordUniform(4, 7, records)(2), RecordUniform(3, 8, records)(2), RecordUniform(3, 7, records)(1)):
        assert not np.any(other == whole[records])
    sample = whole[:200_000]
    np.testing.assert_allclose(np.histogram(sample, 20, (0, 1))[0] / 200_000, 0.05, atol=0.002)
    assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 0.01


def test_numbers_never_change() -> None:
    """Runs continue under other versions of NumPy."""
    uniform = RecordUniform(3, 7, np.array([0, 1, 99, 10**8]))
    assert [hex(bits) for bits in uniform.bits(2).tolist()] == GOLDEN
    assert uniform(2).tolist() == [(int(bits, 16) >> 11) / 2**53 for bits in GOLDEN]


@given(st.lists(st.integers(0, 2**100), min_size=1, max_size=6))
@example([0])
@example([0, 0, 0, 0, 0])
@example([2**32 - 1, 2**32])
def test_streams_start_as_with_numpy(numbers: list[int]) -> None:
    expected = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    assert stream_start(*numbers) == int(expected[0])


def test_numbers_are_splitmix64s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published test values of the generator: the first five of the stream from state 1234567."""
    asked = []
    monkeypatch.setattr("pipelines.uniform.stream_start", lambda *numbers: asked.append(numbers) or 1234567)
    published = np.array(
        [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821],
        np.uint64,
    )
    found = RecordUniform(3, 7, np.arange(1, 6))(2)
    assert asked == [(3, 7, 2)]
    np.testing.assert_array_equal(found, (published >> np.uint64(11)) / 2**53)
