"""ShardSet and dataset.json."""

import errno
import json
import os
import shutil
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipelines import ShardSet, UserError
from pipelines.shards import shard_set
from pipelines.shards.index import Index, index_path, read_index
from pipelines.system import reading
from tests.helpers import faults
from tests.helpers.data import NUM_CLASSES, TRAIN_RECORDS, TRAIN_SHARDS


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny_dataset, tmp_path / "shards")


def edit(dataset: Path, **changes: object) -> None:
    path = dataset / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_counts_and_places(tiny_dataset: Path) -> None:
    shards = ShardSet.open(tiny_dataset, "train")
    assert shards.num_records == TRAIN_RECORDS
    assert shards.num_classes == NUM_CLASSES
    assert len(shards.paths) == TRAIN_SHARDS
    assert shards.sizes.shape == (TRAIN_RECORDS, 2)
    for number, path in enumerate(shards.paths):
        assert shards.lengths[shards.shard == number].sum() == path.stat().st_size
    np.testing.assert_array_equal(shards.usable, np.arange(TRAIN_RECORDS))


def test_quarantined_records_are_not_usable(dataset: Path) -> None:
    splits = json.loads((dataset / "dataset.json").read_text())["splits"]
    splits["train"]["quarantine"] = [3, 50]
    edit(dataset, splits=splits)
    shards = ShardSet.open(dataset, "train")
    assert shards.num_records == TRAIN_RECORDS
    assert set(range(TRAIN_RECORDS)) - set(shards.usable.tolist()) == {3, 50}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"label_base": -1}, "label_base"),
        ({"label_base": "1"}, "label_base"),
        ({"classes": []}, "classes"),
        ({"surprise": 1}, "surprise"),
        ({"splits": {"train": {"shards": [{"file": "../x", "records": 1, "bytes": 1}], "sizes": "s"}}}, "file"),
        ({"splits": {"train": {"shards": [{"file": "/x", "records": 1, "bytes": 1}], "sizes": "s"}}}, "file"),
        ({"splits": {"train": {"shards": [], "sizes": "s"}}}, "shards"),
        ({"splits": {}}, "no split 'train'"),
    ],
)
def test_a_wrong_dataset_file_is_refused(dataset: Path, changes: dict, message: str) -> None:
    edit(dataset, **changes)
    with pytest.raises(UserError, match=message) as caught:
        ShardSet.open(dataset, "train")
    assert "\n" not in str(caught.value)


def test_fields_that_every_release_wrote_are_not_filled_in(dataset: Path) -> None:
    told = json.loads((dataset / "dataset.json").read_text())
    del told["version"], told["splits"]["validation"]["quarantine"]
    (dataset / "dataset.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"lacks version and splits\.validation\.quarantine; copy it from a backup"):
        ShardSet.open(dataset, "train")


def test_missing_things_are_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        ShardSet.open(tmp_path / "nowhere", "train")
    (dataset / "train-00000-of-00003").unlink()
    with pytest.raises(UserError, match="train-00000-of-00003: the shard is missing"):
        ShardSet.open(dataset, "train")
    (dataset / "validation-sizes.npy").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"validation-sizes\.npy"):
        ShardSet.open(dataset, "validation")
    (dataset / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json"):
        ShardSet.open(dataset, "validation")


def test_indexes_are_read_at_once(tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that takes 10 ms for a request, a thousand shards would take many seconds one by one."""
    together = threading.Barrier(TRAIN_SHARDS)

    def read(path: Path, num_bytes: int) -> Index:
        together.wait(60)  # nobody passes before all are here
        return read_index(path, num_bytes)

    expected = ShardSet.open(tiny_dataset, "train")
    monkeypatch.setattr(shard_set, "read_index", read)
    found = ShardSet.open(tiny_dataset, "train")
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_array_equal(found.shard, expected.shard)


def test_the_first_faulty_shard_is_named(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the fault of a later shard is found before."""
    later = threading.Event()

    def read(path: Path, num_bytes: int) -> Index:
        if path.name.startswith("train-00001"):
            assert later.wait(60)
        elif path.name.startswith("train-00002"):
            later.set()
        return read_index(path, num_bytes)

    for number in (1, 2):
        (dataset / f"train-0000{number}-of-00003.idx").unlink()
    monkeypatch.setattr(shard_set, "read_index", read)
    with pytest.raises(UserError, match=r"train-00001-of-00003\.idx: No such file"):
        ShardSet.open(dataset, "train")


def test_each_shard_costs_three_requests(tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the shard, the index and its content. What the system knows of an open file costs nothing."""
    counts: Counter[tuple[str, str]] = Counter()
    opened: dict[int, str] = {}
    stat, open_file, pread = os.stat, os.open, os.pread

    def counted_stat(path: Path | int, **options: bool) -> os.stat_result:
        counts["stat", str(path)] += 1
        return stat(path, **options)

    def counted_open(path: Path, *flags: int, **options: int) -> int:
        counts["open", str(path)] += 1
        opened[descriptor := open_file(path, *flags, **options)] = str(path)
        return descriptor

    def counted_pread(descriptor: int, *part: int) -> bytes:
        counts["read", opened[descriptor]] += 1
        return pread(descriptor, *part)

    for name, function in (("stat", counted_stat), ("open", counted_open), ("pread", counted_pread)):
        monkeypatch.setattr(os, name, function)
    monkeypatch.setattr(shard_set, "_OPEN_THREADS", 1)  # numbers of descriptors are used again
    shards = ShardSet.open(tiny_dataset, "train")
    for path in shards.paths:
        of_shard = {what: count for (what, name), count in counts.items() if name == str(path)}
        of_index = {what: count for (what, name), count in counts.items() if name == str(index_path(path))}
        assert (of_shard, of_index) == ({"stat": 1}, {"open": 1, "read": 1})


def test_an_index_is_read_again_after_a_transient_error(tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading.time, "sleep", lambda _: None)
    failures = faults.failing_reads(monkeypatch, errno.EIO, 3)
    assert ShardSet.open(tiny_dataset, "train").num_records == TRAIN_RECORDS
    assert len(failures) == 3
