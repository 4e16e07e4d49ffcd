"""Loaders with the fetcher: the same batches as without, everything that is read is fetched, and nothing stays."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines import AugmentSpec, ShardSet, UserError
from pipelines.loader import Loader, LoaderOptions
from pipelines.storage import fetcher, ways
from pipelines.storage.spans import PAGE
from tests.helpers import faults
from tests.test_fetcher import threads
from tests.test_loaders import ALL, READING, opened
from tests.test_open_files import open_shards
from tests.test_spans import pages_of


@pytest.fixture(scope="module")
def train(tiny_dataset: Path) -> ShardSet:
    return ShardSet.open(tiny_dataset, "train")


@pytest.fixture
def fetched(train: ShardSet, monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, int]]:
    """(shard, page) of what is fetched."""
    found: set[tuple[int, int]] = set()

    def note(descriptor: int, first: int, length: int) -> None:
        shard = train.paths.index(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        found.update((shard, page) for page in range(first // PAGE, (first + length) // PAGE))

    monkeypatch.setattr(ways, "advise", note)
    return found


def epochs_of(loader: Loader, how: str) -> Iterator[list[np.ndarray]]:
    """The batches of two epochs."""
    for epoch in range(2):
        for batch in loader.batches(epoch, epoch) if how == "batches" else loader.epoch(epoch, epoch):
            yield [part.numpy() for part in batch]


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("how", ["batches", "epoch"])
@pytest.mark.parametrize("spec", [AugmentSpec.train(), AugmentSpec.evaluation()], ids=["training", "evaluation"])
def test_batches_are_the_same_with_and_without(train: ShardSet, name: str, how: str, spec: AugmentSpec) -> None:
    found = []
    for records in (0, 64):
        with opened(name, train, augment=spec, read_ahead=records) as loader:
            found.append(list(epochs_of(loader, how)))
    without, with_fetcher = found
    assert len(without) == len(with_fetcher) > 20
    for batch, expected in zip(with_fetcher, without, strict=True):
        for part, wanted in zip(batch, expected, strict=True):
            np.testing.assert_array_equal(part, wanted)


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("how", ["batches", "epoch"])
def test_what_a_loader_reads_is_fetched(train: ShardSet, name: str, how: str, fetched: set[tuple[int, int]]) -> None:
    with opened(name, train) as loader:
        batches = epochs_of(loader, how)
        for _ in range(loader.steps_per_epoch):
            next(batches)
        loader._fetcher._first.worker.submit(int).result(timeout=60)
        records = loader.plan(0).records.tolist()
        batches.close()
    assert set().union(*(pages_of(train, record, 0) for record in records)) <= fetched


@pytest.mark.parametrize("name", READING)
def test_nothing_stays_after_the_end(train: ShardSet, name: str) -> None:
    with opened(name, train) as loader:
        for _ in epochs_of(loader, "batches"):
            pass
        assert len(threads()) == 1
    assert not threads()
    assert not open_shards(train)


@pytest.mark.parametrize("name", ALL)
def test_read_ahead_can_be_switched_off(train: ShardSet, name: str) -> None:
    with opened(name, train, read_ahead=0) as loader:
        next(loader.batches(0))
        assert not threads()
    with pytest.raises(UserError, match="read_ahead must be at least 0 records, not -1"):
        LoaderOptions(1, read_ahead=-1)


def test_synthetic_batches_need_no_storage(train: ShardSet) -> None:
    with opened("synthetic", train) as loader:
        next(loader.batches(0))
        assert not threads()


@pytest.mark.parametrize("name", READING)
def test_a_fetcher_that_is_blocked_holds_nothing_up(
    train: ShardSet, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, answer = threading.Event(), threading.Event()
    monkeypatch.setattr(ways, "advise", lambda *_: (called.set(), answer.wait()))
    monkeypatch.setattr(fetcher, "_CLOSE_SECONDS", 0.1)
    with opened(name, train) as loader:
        assert len(list(loader.batches(0))) == loader.steps_per_epoch
        assert called.wait(60)
    (left,) = threads()
    answer.set()
    left.join(timeout=60)
    assert not left.is_alive()


@pytest.mark.parametrize("name", READING)
def test_a_shard_that_cannot_be_fetched_is_read(
    tiny_dataset: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a line for each record: the fetcher's own files are gone, the loader's are there."""
    shards = ShardSet.open(faults.copy_dataset(tiny_dataset, tmp_path / "shards"), "train")
    monkeypatch.setattr(fetcher.OpenFiles, "open", lambda _, path: os.open(path.with_suffix(".gone"), os.O_RDONLY))
    with opened(name, shards) as loader:
        assert len(list(loader.batches(0))) == loader.steps_per_epoch
    (line,) = caplog.messages
    assert "records are not fetched ahead (train-0000" in line
    assert "No such file or directory" in line
