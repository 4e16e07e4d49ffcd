"""Streams: every batch once and in order, whatever the pipelines are that give them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.settings import stretched
from pipelines import AugmentSpec, EpochPlan, ShardSet
from pipelines.stream import UNBOUNDED, Pipeline, Segment, Stream
from pipelines.system.worker import Worker


@pytest.fixture(scope="module")
def plan(tiny_dataset: Path) -> EpochPlan:
    return EpochPlan(ShardSet.open(tiny_dataset, "train"), AugmentSpec.train(), batch_size=8, image_size=32)


class Steps(Pipeline):
    """A pipeline whose batches are the numbers of its steps; notes what happens to it."""

    def __init__(self, segment: Segment, notes: list[str], fails_at: int = -1) -> None:
        super().__init__(segment)
        self._notes = notes
        self._fails_at = fails_at
        notes.append(f"made {segment.first}+{segment.steps}")

    def open(self) -> Iterator[int]:
        self._notes.append(f"opened {self.segment.first}")
        for step in range(self.segment.first, self.segment.first + self.segment.steps):
            if step == self._fails_at:
                raise OSError(f"step {step}")
            yield step

    def close(self) -> None:
        self._notes.append(f"closed {self.segment.first}")


@pytest.fixture(autouse=True)
def first_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length of the first segment, which the tests count on."""
    monkeypatch.setattr("pipelines.stream._FIRST_STEPS", 64)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("kimagenet-test")
    yield made
    made.close()


def stream(
    plan: EpochPlan,
    worker: Worker,
    notes: list[str],
    first: int = 0,
    steps: int = UNBOUNDED,
    **options: Any,
) -> Stream:
    fails_at = options.pop("fails_at", -1)
    return Stream(Segment(plan, first, steps), lambda part: Steps(part, notes, fails_at), worker, **options)


@pytest.mark.parametrize("most_steps", [1, 2, 33, 100, UNBOUNDED])
@pytest.mark.parametrize("first", [0, 5, 1000])
def test_every_step_comes_once_and_in_order(plan: EpochPlan, worker: Worker, most_steps: int, first: int) -> None:
    notes: list[str] = []
    reading = stream(plan, worker, notes, first, most_steps=most_steps)
    assert [reading.next() for _ in range(700)] == list(range(first, first + 700))
    assert reading.position == first + 700
    reading.close()
    worker.submit(int).result()  # what was given to the worker before is done
    assert sorted(note.split("+")[0].split()[1] for note in notes if note.startswith("made")) == sorted(
        note.split()[1] for note in notes if note.startswith("closed")
    )


def test_each_step_is_told_before_it_is_read(plan: EpochPlan, worker: Worker) -> None:
    notes: list[str] = []
    reading = stream(plan, worker, notes, 3, 5, follow=lambda step: notes.append(f"told {step}"))
    for _ in range(5):
        reading.next()
    assert notes[0] == "told 3"
    assert [note for note in notes if note.startswith("told")] == [f"told {step}" for step in range(3, 8)]


@pytest.mark.parametrize(("batch_size", "expected"), [(8, [64, 256, 300, 300]), (512, [32, 128, 300, 300])])
def test_segments_grow(plan: EpochPlan, worker: Worker, batch_size: int, expected: list[int]) -> None:
    """The first one has few steps, and fewer if batches are large."""
    large = replace(plan, shards=stretched(plan.shards, batch_size), batch_size=batch_size)
    notes: list[str] = []
    reading = stream(large, worker, notes, most_steps=300)
    for _ in range(sum(expected[:2]) + 1):
        reading.next()
    worker.submit(int).result()
    assert [int(note.split("+")[1]) for note in notes if note.startswith("made")] == expected


def test_a_bounded_stream_ends_and_lets_go(plan: EpochPlan, worker: Worker) -> None:
    notes: list[str] = []
    reading = stream(plan, worker, notes, 3, 10, most_steps=4)
    assert [reading.next() for _ in range(10)] == list(range(3, 13))
    with pytest.raises(StopIteration):
        reading.next()
    worker.submit(int).result()
    assert [note for note in notes if note.startswith("made")] == ["made 3+4", "made 7+4", "made 11+2"]
    assert sorted(note for note in notes if note.startswith("closed")) == ["closed 11", "closed 3", "closed 7"]


def test_the_next_pipeline_is_open_before_it_is_needed(plan: EpochPlan, worker: Worker) -> None:
    notes: list[str] = []
    reading = stream(plan, worker, notes, most_steps=100)
    for _ in range(64 + 100 - 32):
        reading.next()
    worker.submit(int).result()
    assert "opened 164" in notes
    assert "opened 264" not in notes


@pytest.mark.parametrize("fails_at", [0, 7, 64, 90])
def test_a_failure_is_raised_at_its_step_and_ends_the_stream(plan: EpochPlan, worker: Worker, fails_at: int) -> None:
    notes: list[str] = []
    reading = stream(plan, worker, notes, fails_at=fails_at)
    assert [reading.next() for _ in range(fails_at)] == list(range(fails_at))
    with pytest.raises(OSError, match=f"step {fails_at}"):
        reading.next()
    worker.submit(int).result()
    made = {note.split("+")[0].split()[1] for note in notes if note.startswith("made")}
    assert {note.split()[1] for note in notes if note.startswith("closed")} == made


def test_a_closed_stream_continues_where_it_was(plan: EpochPlan, worker: Worker) -> None:
    reading = stream(plan, worker, [])
    before = [reading.next() for _ in range(40)]
    reading.close()
    assert before + [reading.next() for _ in range(40)] == list(range(80))


@pytest.mark.parametrize(("first", "steps"), [(0, 12), (3, 30), (11, 2), (25, 1)])
def test_a_segment_is_the_steps_of_its_epochs(plan: EpochPlan, first: int, steps: int) -> None:
    count = plan.steps_per_epoch
    epochs = [replace(plan, epoch=epoch).records.reshape(count, -1) for epoch in range(4)]
    expected = np.concatenate(epochs)[first : first + steps].reshape(-1)
    segment = Segment(plan, first, steps)
    assert segment.positions == len(expected)
    np.testing.assert_array_equal(segment.records, expected)
    draws = [part.draw(start, stop).affine for part, start, stop in segment.parts()]
    wanted = [
        replace(plan, epoch=step // count).draw(step % count * 8, step % count * 8 + 8).affine
        for step in range(first, first + steps)
    ]
    np.testing.assert_array_equal(np.concatenate(draws), np.concatenate(wanted))


def test_an_evaluation_repeats_one_epoch(tiny_dataset: Path) -> None:
    plan = EpochPlan(ShardSet.open(tiny_dataset, "validation"), AugmentSpec.evaluation(), batch_size=8, image_size=32)
    segment = Segment(plan, 0, 3 * plan.steps_per_epoch)
    np.testing.assert_array_equal(segment.records, np.tile(plan.records, 3))


def test_closing_does_not_wait_for_the_worker(plan: EpochPlan, worker: Worker) -> None:
    """The garbage collector may close a stream in the worker's own thread."""
    notes: list[str] = []
    reading = stream(plan, worker, notes)
    for _ in range(64 - 32):
        reading.next()  # the next pipeline is being opened
    worker.submit(reading.close).result(timeout=60)
    worker.submit(int).result(timeout=60)
    assert sorted(note for note in notes if note.startswith("closed")) == ["closed 0", "closed 64"]


def test_a_long_epoch_is_shuffled_once(plan: EpochPlan, worker: Worker) -> None:
    seen: list[EpochPlan] = []

    class Noted(Steps):
        def __init__(self, segment: Segment) -> None:
            super().__init__(segment, [])
            seen.extend(part for part, _, _ in segment.parts())

    count = plan.steps_per_epoch
    reading = Stream(Segment(plan, 2 * count, count), Noted, worker, most_steps=2)
    for _ in range(count):
        reading.next()
    assert len(seen) > 3
    assert len({id(part) for part in seen}) == 1


def test_slow_work_is_hurried_from_the_middle_of_a_segment_on(plan: EpochPlan, worker: Worker) -> None:
    hurried: list[int] = []

    class Slow(Steps):
        def hurry(self) -> None:
            hurried.append(self.segment.first)

    reading = Stream(Segment(plan, 0, UNBOUNDED), lambda part: Slow(part, []), worker, most_steps=1000)
    for _ in range(64 + 127):
        reading.next()
    assert hurried == [64]
    reading.next()
    assert hurried == [64, 320]
