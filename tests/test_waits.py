"""For what a run waits: states of threads, and the share of a wait that is for the storage."""

from pathlib import Path

import pytest

from kimagenet.training.results import Totals
from kimagenet.training.waits import Samples, WaitSampler, waits_for_storage
from pipelines.system.threads import ThreadStates, thread_states


def test_threads_are_counted_by_their_state(tmp_path: Path) -> None:
    for number, text in enumerate(("R", "D", "S", "D", "R")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stat").write_text(f"{number} (a) D (name) {text} 1 2 3\n")
    (tmp_path / "9").mkdir()  # has ended
    assert thread_states(tmp_path) == ThreadStates(running=2, in_storage=2)
    assert thread_states(tmp_path / "none") == ThreadStates(0, 0)
    assert thread_states().running >= 1  # this thread


@pytest.mark.parametrize(
    ("running", "in_storage", "expected"),
    [
        (1, 1, True),  # only the thread that samples runs
        (2, 3, True),
        (3, 1, False),  # both decoders run
        (1, 0, False),  # everything waits for something else
    ],
)
def test_a_wait_is_for_the_storage_if_decoders_are_idle(running: int, in_storage: int, expected: bool) -> None:
    assert waits_for_storage(ThreadStates(running, in_storage), decoders=2) is expected


def test_only_samples_within_a_wait_count() -> None:
    sampler = WaitSampler(2, look=lambda: ThreadStates(1, 1))
    sampler.sample()
    with sampler.waiting():
        sampler.sample()
        sampler.sample()
    sampler.sample()
    assert sampler.take() == Samples(taken=4, in_storage=2)
    assert sampler.take() == Samples()


def test_samples_are_taken_while_the_block_runs() -> None:
    sampler = WaitSampler(2, look=lambda: ThreadStates(1, 1), period=0.001)
    found = Samples()
    with sampler.waiting(), sampler.sampling():
        while found.taken < 3:
            more = sampler.take()
            found = Samples(found.taken + more.taken, found.in_storage + more.in_storage)
    assert found.in_storage == found.taken
    sampler.take()
    assert sampler.take() == Samples()  # the thread has ended


def test_the_wait_for_storage_is_a_part_of_the_wait_for_data() -> None:
    totals = Totals(images=10, seconds=10.0, waited=4.0, samples=100, in_storage=30)
    assert totals.speed() == {"images_per_second": 1.0, "data_wait": 0.4, "storage_wait": 0.3}
    assert Totals(images=10, seconds=10.0, waited=1.0, samples=10, in_storage=5).speed()["storage_wait"] == 0.1
    assert Totals(images=10, seconds=10.0, waited=1.0).speed()["storage_wait"] == 0.0
    assert totals + totals - totals == totals
