"""The doctor's measurement of a storage: reads on small shards, findings by figures."""

import os
from pathlib import Path

import numpy as np
import pytest

from kimagenet.diagnosis import reads, storage
from kimagenet.diagnosis.reads import Reads, measure_reads, sample
from kimagenet.diagnosis.storage import Figures, judge
from pipelines import ShardSet
from pipelines.errors import UserError
from tests.helpers import faults

SSD = Reads(in_order=4000, in_order_ahead=9000, scattered=2000, scattered_ahead=8000, kept=0.0)
GIB = 1 << 30


def figures(found: Reads, decoded: float = 1000.0, shards_bytes: int = 140 * GIB) -> Figures:
    return Figures(found, decoded, "dali", 110e3, shards_bytes, 24 * GIB)


@pytest.fixture
def shards(tiny_dataset: Path) -> ShardSet:
    return ShardSet.open(tiny_dataset, "train")


def test_a_storage_that_feeds_the_loader_is_fine() -> None:
    finding = judge(figures(SSD))
    assert finding.state == "fine"
    assert finding.text == (
        "8,000 records/s (880 MB/s) scattered and read ahead, 2,000 one at a time; in order 9,000 and 4,000; "
        "dali decodes 1,000 records/s from memory: it feeds the loader"
    )
    assert finding.figures["scattered_ahead_records_per_second"] == 8000
    assert finding.figures["decoded_records_per_second"] == 1000


@pytest.mark.parametrize(
    ("found", "decoded", "text"),
    [
        (SSD, 10_000.0, "it feeds 90% of the loader"),
        (Reads(1200, 1300, 148, 150, 0.0), 1000.0, "it feeds the loader only with records in order"),
        (Reads(40, 60, 40, 50, 0.0), 1000.0, "it feeds 6% of the loader"),
    ],
)
def test_a_slow_storage_is_a_note_with_a_remedy(found: Reads, decoded: float, text: str) -> None:
    finding = judge(figures(found, decoded))
    assert (finding.state, finding.remedy) == ("note", 'see docs/storage.md, "When data wait is high"')
    assert finding.text.endswith(text)


def test_a_slow_storage_of_a_small_data_set_is_fine() -> None:
    finding = judge(figures(Reads(40, 60, 40, 50, 0.0), shards_bytes=2 * GIB))
    assert (finding.state, finding.remedy) == ("fine", "")
    assert finding.text.endswith("but the 2.1 GB stay in memory after one epoch")


def test_pages_that_stay_in_memory_are_named() -> None:
    finding = judge(figures(Reads(9000, 9000, 9000, 9000, 1.0)))
    assert finding.state == "note"
    assert finding.text.startswith("100% of the pages stay in memory when they are dropped")
    assert "/dev/shm" in finding.remedy
    unknown = judge(figures(Reads(9000, 9000, 9000, 9000, None)))
    assert "the shards belong to another user" in unknown.text
    assert "pages_kept" not in unknown.figures


def test_records_are_read_in_four_ways(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []
    real = os.pread

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        data = real(descriptor, length, offset)
        assert len(data) == length
        seen.append(("read", offset, length))
        return data

    monkeypatch.setattr(reads.os, "pread", pread)
    monkeypatch.setattr(reads, "ask_for", lambda descriptor, offset, length: seen.append(("ask", offset, length)))
    monkeypatch.setattr(reads, "drop_pages", lambda path: seen.append(("drop", 0, 0)))
    found = measure_reads(shards, 1000.0)  # so that every record is read
    assert min(found.in_order, found.in_order_ahead, found.scattered, found.scattered_ahead) > 0
    everything = sorted(
        zip(shards.offsets[shards.usable].tolist(), shards.lengths[shards.usable].tolist(), strict=True)
    )
    kinds = [kind for kind, *_ in seen]
    assert kinds[0] == "drop"
    assert kinds.count("drop") == 5 * len(shards.paths)
    for kind, times in (("read", 4), ("ask", 2)):
        places = [(offset, length) for name, offset, length in seen if name == kind]
        assert sorted(places) == sorted(times * everything)
    in_order = [(offset, length) for name, offset, length in seen if name == "read"][: len(everything)]
    assert in_order == list(zip(shards.offsets[shards.usable], shards.lengths[shards.usable], strict=True))


def test_a_measurement_ends_in_time_and_closes_its_files(shards: ShardSet) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert measure_reads(shards, 0.0).scattered > 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_large_records_are_asked_for_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(reads.os, "posix_fadvise", lambda fd, start, length, advice: asked.append((start, length)))
    reads.ask_for(0, 1000, 300_000)
    assert asked == [(1000, 131072), (132072, 131072), (263144, 37856)]


def test_a_few_shards_stand_for_many(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.array_equal(sample(shards), shards.usable)
    monkeypatch.setattr(reads, "MOST_SHARDS", 2)
    chosen = sample(shards)
    assert set(shards.shard[chosen].tolist()) == {0, len(shards.paths) - 1}


def test_the_split_is_train_or_the_first(tiny_dataset: Path, tmp_path: Path) -> None:
    assert reads.open_split(tiny_dataset).split == "train"
    copy = faults.copy_dataset(tiny_dataset, tmp_path / "copy")
    text = (copy / "dataset.json").read_text().replace('"train"', '"a"')
    (copy / "dataset.json").write_text(text)
    assert reads.open_split(copy).split == "a"
    with pytest.raises(UserError):
        reads.open_split(tmp_path)


@pytest.mark.slow
def test_a_trial_on_small_shards(tiny_dataset: Path) -> None:
    (finding,) = storage.trial(tiny_dataset, 0.1)
    assert finding.name == "storage"
    assert finding.figures["decoded_records_per_second"] > 0
    assert finding.state in ("fine", "note")
