"""Which bytes are fetched: every byte of each record, in whole blocks, in pieces that the kernel takes, and no more."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipelines import AugmentSpec, EpochPlan, ShardSet
from pipelines.storage.lead import Lead
from pipelines.storage.spans import PAGE, Span, spans_of, stdio_buffer
from tests.helpers.sparse import sparse_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return sparse_shards(tmp_path_factory.mktemp("sparse"), [50, 1, 70, 30, 2], largest=60_000)


def pages_of(shards: ShardSet, record: int, buffer: int) -> set[tuple[int, int]]:
    """(shard, page) of every byte of a record, and of what a reader with such a buffer may read around it."""
    block = max(buffer, PAGE)
    first = int(shards.offsets[record]) // block * block
    last = int(shards.offsets[record] + shards.lengths[record]) + buffer - 1
    return {(int(shards.shard[record]), page) for page in range(first // PAGE, last // PAGE + 1)}


def alone(records: np.ndarray) -> np.ndarray:
    """Each record as a separate run."""
    return np.stack([records, records], axis=1)


def pages_in(spans: list[Span]) -> list[tuple[int, int]]:
    """(shard, page) of every page of some spans."""
    return [(span.shard, page) for span in spans for page in range(span.first // PAGE, span.end // PAGE)]


@pytest.mark.parametrize("count", [1, 2, 7, 60, 153])
@pytest.mark.parametrize("buffer", [0, 4096, 8192])
@pytest.mark.parametrize("seed", range(3))
def test_spans_are_the_pages_of_the_records_each_once(shards: ShardSet, count: int, buffer: int, seed: int) -> None:
    records = np.random.default_rng(seed).integers(0, shards.num_records, count)  # some of them twice
    spans = spans_of(shards, alone(records), buffer)
    found = pages_in(spans)
    assert all(span.first % PAGE == span.end % PAGE == 0 for span in spans)
    assert len(found) == len(set(found))
    assert set(found) == set().union(*(pages_of(shards, record, buffer) for record in records.tolist()))


@pytest.mark.parametrize("seed", range(5))
def test_spans_come_in_the_order_in_which_they_are_needed(shards: ShardSet, seed: int) -> None:
    records = np.random.default_rng(seed).permutation(shards.num_records)[:40]
    spans = spans_of(shards, alone(records), 0)
    needed = [
        min(position for position, record in enumerate(records) if pages_of(shards, record, 0) & set(pages_in([span])))
        for span in spans
    ]
    assert [span.place for span in spans] == needed == sorted(needed)


def test_neighbours_are_one_span(shards: ShardSet) -> None:
    (span,) = spans_of(shards, alone(np.arange(60, 90)[::-1]), 0)
    assert span.shard == 2
    edges = np.array([0, 49, 50, 51])
    assert len(spans_of(shards, alone(edges), 0)) == 4  # the last of a shard and the first of the next one
    assert spans_of(shards, alone(edges[:0]), 0) == []


def test_a_run_is_all_its_records(shards: ShardSet) -> None:
    runs = np.array([[60, 89], [3, 20], [15, 30]])
    records = [record for first, last in runs.tolist() for record in range(first, last + 1)]
    spans = spans_of(shards, runs, 0)
    assert [(span.shard, span.place) for span in spans] == [(2, 0), (0, 1)]
    assert set(pages_in(spans)) == set().union(*(pages_of(shards, record, 0) for record in records))


def test_what_stdio_reads_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert 0 < stdio_buffer(tmp_path / "file") <= 8192
    assert stdio_buffer(tmp_path / "none") == 8192


@pytest.mark.parametrize("pages", [1, 2, 16, 1000])
def test_pieces_are_small_and_make_up_the_span(pages: int) -> None:
    span = Span(0, 3 * PAGE, 40 * PAGE, 0)
    pieces = list(span.pieces(pages * PAGE))
    assert sum(length for _, length in pieces) == span.end - span.first
    assert pieces[0][0] == span.first
    assert all(first + length == second for (first, length), (second, _) in pairwise(pieces))
    assert all(first % PAGE == 0 and length <= pages * PAGE for first, length in pieces)


def a_plan(shards: ShardSet, batch_size: int) -> EpochPlan:
    return EpochPlan(shards, AugmentSpec.train(), batch_size, image_size=32)


def test_a_lead_is_bounded_in_records_and_bytes(shards: ShardSet) -> None:
    plan, mean, much = a_plan(shards, 4), float(shards.lengths.mean()), 1 << 40
    assert Lead.of(plan, 2048, 2, much).steps == 2048 // 4
    assert Lead.of(plan, 2047, 2, much).steps == 2047 // 4
    memory = 16 << 20
    assert Lead.of(plan, 2048, 2, memory).steps * 4 * mean <= memory / 16
    assert Lead.of(plan, 1 << 40, 2, much).steps * 4 * mean <= 256 << 20


@pytest.mark.parametrize("prefetch", [1, 2, 9])
def test_a_lead_has_two_batches_beyond_those_that_the_loader_keeps(shards: ShardSet, prefetch: int) -> None:
    assert Lead.of(a_plan(shards, 100), 1, prefetch, memory=1).steps == prefetch + 2


@pytest.mark.parametrize("lead", [Lead(1, 1, 3), Lead(4, 1, 3), Lead(32, 8, 4), Lead(33, 8, 4)])
@pytest.mark.parametrize("stop", [5, 1000])
def test_steps_follow_one_another_within_the_lead(lead: Lead, stop: int) -> None:
    fetched, found = 3, []
    for step in range(3, stop):
        while steps := lead.following(step, fetched, stop):
            assert steps.start == fetched
            assert len(steps) <= lead.job
            assert steps.stop <= step + lead.steps
            found += steps
            fetched = steps.stop
        assert step < fetched
        assert fetched == stop or fetched > step + lead.steps - lead.job
    assert found == list(range(3, stop))


def test_a_reader_that_is_elsewhere_is_followed(shards: ShardSet) -> None:
    lead = Lead(32, 8, 4)
    assert lead.following(100, 60, 1000) == range(100, 108)  # it is faster than the fetcher
    assert lead.following(0, 500, 1000) == range(8)  # it has begun again
    assert not lead.following(470, 500, 1000)
