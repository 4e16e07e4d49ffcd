"""The fetcher: what it fetches for which step, what it does where that does nothing or fails, and how it ends."""

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import AugmentSpec, EpochPlan, ShardSet
from pipelines.order.spec import ShuffleSpec
from pipelines.storage import fetcher as fetchers
from pipelines.storage import ways
from pipelines.storage.fetcher import Fetcher
from pipelines.storage.lead import Lead
from pipelines.storage.spans import PAGE, stdio_buffer
from pipelines.storage.ways import Trial, Way
from pipelines.stream import UNBOUNDED, Segment
from tests.helpers.sparse import sparse_shards
from tests.test_open_files import open_shards
from tests.test_spans import pages_of

LEAD = Lead(steps=8, job=2, margin=3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return sparse_shards(tmp_path_factory.mktemp("sparse"), [40, 3, 57])


def plan(shards: ShardSet, **fields: object) -> EpochPlan:
    return EpochPlan(shards, **{"augment": AugmentSpec.train(), "batch_size": 4, "image_size": 32} | fields)


@pytest.fixture
def fetcher(shards: ShardSet) -> Iterator[Fetcher]:
    made = Fetcher(shards, LEAD, most_files=2)
    yield made
    made.close()


@pytest.fixture
def fetched(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, int]]:
    """(shard, page) of what the kernel was asked for."""
    return noted(shards, monkeypatch, "advise")


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Sets whether the kernel says that everything is in memory, or nothing."""

    def say(there: bool) -> None:
        monkeypatch.setattr(fetchers, "is_cached", lambda *_: there)

    say(True)
    return say


def noted(shards: ShardSet, monkeypatch: pytest.MonkeyPatch, name: str) -> set[tuple[int, int]]:
    """Replaces a way to fetch by one that only notes (shard, page)."""
    found: set[tuple[int, int]] = set()

    def note(descriptor: int, first: int, length: int) -> None:
        shard = shards.paths.index(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        assert first % PAGE == length % PAGE == 0
        found.update((shard, page) for page in range(first // PAGE, (first + length) // PAGE))

    monkeypatch.setattr(ways, name, note)
    return found


def settle(fetcher: Fetcher) -> None:
    """Waits until the fetcher has nothing to do. A job may submit another one."""
    for _ in range(LEAD.steps + 1):
        fetcher._first.worker.submit(int).result(timeout=60)


def needed(segment: Segment, first: int, stop: int) -> set[tuple[int, int]]:
    """The pages of the blocks of some steps, and what stdio may read around them."""
    shards, records = segment.plan.shards, set[int]()
    for plan, start, end in replace(segment, first=first, steps=stop - first).parts():
        for run in plan.together(plan.records_between(start, end)).tolist():
            records.update(range(run[0], run[1] + 1))
    return set().union(*(pages_of(shards, record, stdio_buffer(shards.paths[0])) for record in records))


PLANS = {
    "training": {},
    "blocks": {"shuffle": ShuffleSpec(window=20, block_records=5)},
    "blocks for ranks": {"shuffle": ShuffleSpec(window=20, block_records=5), "rank": 1, "world_size": 2},
    "one of three ranks": {"rank": 1, "world_size": 3},
    "skipped records": {"skipped": (3, 50, 51)},
    "evaluation": {"augment": AugmentSpec.evaluation(), "batch_size": 7},
}


@pytest.mark.parametrize("fields", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.usefixtures("in_memory")
def test_the_records_of_the_coming_steps_are_fetched_and_no_others(
    shards: ShardSet, fetcher: Fetcher, fetched: set[tuple[int, int]], fields: dict[str, object], first: int
) -> None:
    """Over more than two epochs."""
    segment = Segment(plan(shards, **fields), first, UNBOUNDED)
    at = fetcher.follow(segment)
    for step in range(first, first + 2 * segment.plan.steps_per_epoch + 3):
        at(step)
        settle(fetcher)
        assert needed(segment, step, step + LEAD.steps - LEAD.job + 1) <= fetched
        assert fetched <= needed(segment, first, step + LEAD.steps)


@pytest.mark.usefixtures("in_memory")
def test_nothing_is_fetched_after_the_end_of_a_segment(
    shards: ShardSet, fetcher: Fetcher, fetched: set[tuple[int, int]]
) -> None:
    segment = Segment(plan(shards), 5, 9)
    at = fetcher.follow(segment)
    for step in range(5, 14):
        at(step)
        settle(fetcher)
    assert fetched == needed(segment, 5, 14)


@pytest.mark.usefixtures("in_memory")
def test_what_may_have_left_the_memory_is_fetched_again(
    shards: ShardSet, fetcher: Fetcher, fetched: set[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = Segment(plan(shards), 0, UNBOUNDED)
    at = fetcher.follow(segment)
    at(0)
    settle(fetcher)
    fetched.clear()
    monkeypatch.setattr(fetchers, "_IDLE_SECONDS", -1.0)
    at(1)
    settle(fetcher)
    assert needed(segment, 1, 1 + LEAD.steps) <= fetched


@pytest.mark.usefixtures("in_memory", "fetched")
def test_a_reader_and_the_fetcher_share_no_plan(shards: ShardSet, fetcher: Fetcher) -> None:
    segment = Segment(plan(shards), 0, UNBOUNDED)
    fetcher.follow(segment)(0)
    settle(fetcher)
    assert segment.latest == []
    assert "_order" not in vars(segment.plan)


def test_steps_are_fetched_once(shards: ShardSet, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(ways, "advise", lambda *piece: asked.append(piece))
    monkeypatch.setattr(fetchers, "is_cached", lambda *_: True)
    every_record = plan(shards, augment=AugmentSpec.evaluation(), batch_size=10)
    at = fetcher.follow(Segment(every_record, 0, every_record.steps_per_epoch))
    for step in range(every_record.steps_per_epoch):
        at(step)
        settle(fetcher)
    total = sum(int(path.stat().st_size) for path in shards.paths)
    assert total <= sum(length for _, _, length in asked) <= total + 4 * PAGE * len(asked)


def read_some(shards: ShardSet, fetcher: Fetcher, steps: int = 40) -> None:
    at = fetcher.follow(Segment(plan(shards), 0, UNBOUNDED))
    for step in range(steps):
        at(step)
        settle(fetcher)


def test_a_trial_decides_after_two_failures_in_a_row() -> None:
    trial = Trial().after(has_fetched=False)
    assert trial.way is Way.ADVISE
    assert trial.after(has_fetched=True) == Trial(is_proven=True)
    trial = trial.after(has_fetched=False)
    assert trial == Trial(Way.READ)
    assert trial.after(has_fetched=True) == Trial(Way.READ, is_proven=True)
    assert trial.after(has_fetched=False).after(has_fetched=False).way is Way.NONE


def test_what_comes_into_memory_proves_that_the_kernel_fetches(
    shards: ShardSet, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[int] = set()
    monkeypatch.setattr(ways, "advise", lambda _, first, length: asked.update(range(first, first + length, PAGE)))
    monkeypatch.setattr(fetchers, "is_cached", lambda _, first, end: first in asked)
    read_some(shards, fetcher)
    assert fetcher.trial == Trial(Way.ADVISE, is_proven=True)


def test_data_in_memory_proves_nothing(
    shards: ShardSet, fetcher: Fetcher, fetched: set[tuple[int, int]], in_memory: Callable[[bool], None]
) -> None:
    in_memory(True)
    read_some(shards, fetcher)
    assert fetcher.trial == Trial()


def test_records_are_read_where_advice_does_nothing(
    shards: ShardSet,
    fetcher: Fetcher,
    fetched: set[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loaded: set[tuple[int, int]] = noted(shards, monkeypatch, "read")

    def looked_at(descriptor: int, first: int, end: int) -> bool:
        shard = shards.paths.index(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        return (shard, first // PAGE) in loaded

    monkeypatch.setattr(fetchers, "is_cached", looked_at)
    segment = Segment(plan(shards), 0, UNBOUNDED)
    at = fetcher.follow(segment)
    for step in range(60):
        at(step)
        settle(fetcher)
    assert fetcher.trial.way is Way.READ
    assert needed(segment, 55, 60 + LEAD.steps - LEAD.job) <= loaded
    assert not caplog.messages


def test_nothing_is_done_where_the_file_system_keeps_nothing(
    shards: ShardSet,
    fetcher: Fetcher,
    fetched: set[tuple[int, int]],
    in_memory: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    in_memory(False)
    loaded = noted(shards, monkeypatch, "read")
    read_some(shards, fetcher, 80)
    assert fetcher.trial.way is Way.NONE
    (line,) = caplog.messages
    assert line.startswith(f"{shards.paths[0].parent}: records are not fetched ahead (its file system keeps nothing")
    fetched.clear()
    loaded.clear()
    read_some(shards, fetcher)
    assert not fetched
    assert not loaded


@pytest.mark.usefixtures("in_memory")
def test_an_error_is_said_once_and_the_rest_is_fetched(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fetched = noted(shards, monkeypatch, "advise")
    note = ways.advise

    def fail(descriptor: int, first: int, length: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(shards.paths[2]):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        note(descriptor, first, length)

    monkeypatch.setattr(ways, "advise", fail)
    fetcher, segment = Fetcher(shards, LEAD, most_files=2), Segment(plan(shards), 0, 25)
    at = fetcher.follow(segment)
    for step in range(25):
        at(step)
        settle(fetcher)
    fetcher.close()
    assert fetched == {(shard, page) for shard, page in needed(segment, 0, 25) if shard != 2}
    (line,) = caplog.messages
    assert "records are not fetched ahead (train-00002: Input/output error)" in line


@pytest.mark.usefixtures("in_memory")
def test_a_fault_of_the_fetcher_does_not_reach_the_reader(
    shards: ShardSet, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetchers, "spans_of", lambda *_: 1 // 0)
    with caplog.at_level(logging.WARNING):
        read_some(shards, fetcher)
    assert len(caplog.messages) == 1
    assert "ZeroDivisionError" in caplog.messages[0]


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Calls of the fetcher that return at the end of the test; the event is set when there is one."""
    called, answer = threading.Event(), threading.Event()
    monkeypatch.setattr(ways, "advise", lambda *_: (called.set(), answer.wait()))
    monkeypatch.setattr(fetchers, "is_cached", lambda *_: True)
    monkeypatch.setattr(fetchers, "_CLOSE_SECONDS", 0.1)
    yield called
    answer.set()
    for thread in threads():
        thread.join(timeout=60)
        assert not thread.is_alive()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("kimagenet-fetch")]


def test_a_fetcher_closes_while_a_call_does_not_return(shards: ShardSet, blocked: threading.Event) -> None:
    fetcher = Fetcher(shards, LEAD, most_files=2)
    fetcher.follow(Segment(plan(shards), 0, UNBOUNDED))(0)
    assert blocked.wait(60)
    fetcher.close()
    assert len(threads()) == 1


def test_a_reader_that_is_faster_is_told_of_once(
    shards: ShardSet, blocked: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    fetcher = Fetcher(shards, LEAD, most_files=2)
    at = fetcher.follow(Segment(plan(shards), 0, UNBOUNDED))
    for step in range(LEAD.steps):
        at(step)
    assert not caplog.messages
    for step in range(LEAD.steps, 5 * LEAD.steps):
        at(step)
    fetcher.close()
    (line,) = caplog.messages
    assert "the storage or this process is too slow" in line


def test_a_closed_fetcher_does_nothing_and_keeps_nothing(
    shards: ShardSet, in_memory: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory(False)
    fetcher = Fetcher(shards, LEAD, most_files=2)
    at = fetcher.follow(Segment(plan(shards), 0, UNBOUNDED))
    for step in range(40):  # all ways are tried
        at(step)
        settle(fetcher)
    assert open_shards(shards)
    fetcher.close()
    fetched = noted(shards, monkeypatch, "advise")
    at(100)
    fetcher.close()
    assert not fetched
    assert not threads()
    assert not open_shards(shards)
