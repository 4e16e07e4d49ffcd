"""Disks and networks that fail during a run: for a moment, forever, or without an answer."""

import contextlib
import errno
import gc
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kimagenet.training import recovery
from kimagenet.training.feed import Feed, open_feed
from pipelines import AugmentSpec, BatchSpec, ShardSet, stream
from pipelines.errors import Blocked, RunFailed
from pipelines.shards import corrupt
from pipelines.system import reading
from pipelines.system.reading import FileReader, read_bytes, read_file
from pipelines.system.watch import NoAnswer, Watch, within
from tests.helpers import faults
from tests.test_loaders import READING


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    return faults.copy_dataset(tiny_dataset, tmp_path / "shards")


def open_train(dataset: Path, name: str, timeout: float = 0.0) -> Feed:
    shards = ShardSet.open(dataset, "train")
    strategy = tf.distribute.get_strategy()
    return open_feed(strategy, name, shards, BatchSpec(8, 32), AugmentSpec.train(), workers=1, timeout=timeout)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that `read_bytes` would have waited, one entry a pause."""
    slept: list[float] = []
    monkeypatch.setattr(reading.time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_transient_errors_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float], number: int
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    failures = faults.failing_reads(monkeypatch, number, 3)
    assert read_bytes(tmp_path / "file", 2, 5) == b"23456"
    assert len(failures) == 3
    assert pauses == [0.1, 0.4, 1.6]


def test_lasting_errors_are_raised_with_the_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with pytest.raises(OSError, match="ends at byte 10, 3 bytes too early") as caught:
        read_bytes(path, 8, 5)
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none", 0, 1)
    assert not pauses
    faults.failing_reads(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        read_bytes(path, 0, 1)
    assert sum(pauses) == pytest.approx(8.5)


@pytest.fixture
def hints(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The parts of files that the kernel was asked to read: first byte and length."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, offset, length, __: found.append((offset, length)))
    return found


def test_a_file_that_is_read_from_its_beginning_is_read_ahead(tmp_path: Path, hints: list[tuple[int, int]]) -> None:
    """Every byte is asked for once, in pieces that the kernel takes whole, before it is needed."""
    path, piece, ahead = tmp_path / "file", 100_000, 500_000
    path.write_bytes(bytes(range(256)) * 8000)
    with FileReader(path, ahead) as file:
        for offset in range(0, file.size, piece):
            assert file.read(offset, piece) == path.read_bytes()[offset : offset + piece]
            assert sum(length for _, length in hints) >= min(offset + piece + ahead, file.size)
            assert sum(length for _, length in hints) <= offset + piece + ahead + (128 << 10)
    assert [offset for offset, _ in hints] == list(range(0, path.stat().st_size, 128 << 10))
    assert {length for _, length in hints} == {128 << 10}


def test_a_file_that_is_read_anywhere_is_not_read_ahead(tmp_path: Path, hints: list[tuple[int, int]]) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    with FileReader(tmp_path / "file") as file:
        assert file.read(990, 100) == bytes(10)
    assert read_bytes(tmp_path / "file", 7, 5) == bytes(5)
    assert hints == []


def test_a_whole_file_is_asked_for_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hints: list[tuple[int, int]]
) -> None:
    data = bytes(range(256)) * 2000
    (tmp_path / "file").write_bytes(data)
    assert read_file(tmp_path / "file") == data
    assert len(hints) == 4

    def refuse(*_: int) -> None:
        raise OSError(errno.EINVAL, "this file system has no hints")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    assert read_file(tmp_path / "file") == data
    (tmp_path / "empty").touch()
    assert read_file(tmp_path / "empty") == b""


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch(60.0)
    yield watch
    watch.close()
    wait_for_threads()


def test_watched_iterators_give_the_same_as_plain_ones(watch: Watch) -> None:
    assert list(watch.iterate(iter([1, 2, 3]))) == [1, 2, 3]
    failing = watch.iterate(1 // x for x in (1, 0))
    assert next(failing) == 1
    with pytest.raises(ZeroDivisionError):
        next(failing)
    assert within(60.0, lambda: 7) == 7


def test_a_watch_uses_one_thread(watch: Watch) -> None:
    """TensorFlow keeps some memory for every thread that ever called it."""
    threads = {watch.call(threading.get_ident)}
    for _ in range(3):
        threads |= set(watch.iterate(threading.get_ident() for _ in range(2)))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_feed_reads_all_epochs_in_one_thread(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_train(dataset, "tfdata", timeout=60.0) as feed:
        monkeypatch.setattr(feed.loaders[0], "batches", lambda *_: (threading.get_ident() for _ in range(2)))
        assert len({*feed.epoch(0), *feed.epoch(1), threading.get_ident()}) == 2


class Pipeline:
    """An iterator that fails at the second `next`, and records the thread in which it is deleted."""

    def __init__(self, error: type[Exception], ended: list[int]) -> None:
        self._errors = iter([None, error])
        self._ended = ended

    def __iter__(self) -> "Pipeline":
        return self

    def __next__(self) -> None:
        error = next(self._errors)
        if error:
            raise error

    def __del__(self) -> None:
        self._ended.append(threading.get_ident())


@pytest.mark.parametrize("error", [StopIteration, ValueError, None])
def test_a_watched_iterator_is_deleted_when_it_ends_fails_or_is_abandoned(
    watch: Watch, error: type[Exception] | None
) -> None:
    """At once, without the garbage collector: a pipeline needs hundreds of MB. In the watch's thread: it may block."""
    ended: list[int] = []
    gc.disable()
    try:
        watched = watch.iterate(Pipeline(error or ValueError, ended))
        next(watched)
        with contextlib.suppress(StopIteration, ValueError):
            if error:
                next(watched)
        del watched
        assert watch.call(threading.get_ident) == ended[0]
    finally:
        gc.enable()


@pytest.mark.parametrize("name", READING)
def test_a_feed_that_fails_deletes_its_iterators(dataset: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once as well, and in the watch's thread, without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        with open_train(dataset, name, timeout=60.0) as feed:
            loader, deleted = feed.loaders[0], []
            make = loader._pipeline

            class Watched(stream.Pipeline):
                def __init__(self, segment: stream.Segment) -> None:
                    super().__init__(segment)
                    self._pipeline = make(segment)

                def open(self) -> Iterator[object]:
                    iterator, first = self._pipeline.open(), self.segment.first
                    weakref.finalize(iterator, lambda: deleted.append((first, threading.get_ident())))
                    return iterator

                def close(self) -> None:
                    self._pipeline.close()

            monkeypatch.setattr(loader, "_pipeline", Watched)
            faults.corrupt(feed.shards, [int(loader.plan(0).records[20])])
            with contextlib.suppress(RunFailed):
                list(feed.epoch(0))
            assert deleted[:1] == [(0, feed._watches[0].call(threading.get_ident))]
    finally:
        gc.enable()


def wait_for_threads() -> None:
    """Waits until the threads of all watches have ended."""
    deadline = time.monotonic() + 60
    while any(thread.name == "kimagenet-watch" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_call_that_does_not_return_is_abandoned() -> None:
    answer = threading.Event()
    with pytest.raises(NoAnswer):
        within(0.05, answer.wait)
    answer.set()


FILE_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "vanishes": (Path.unlink, "No such file or directory"),
    "shrinks": (faults.truncate, r"has [\d,]+ bytes now, not [\d,]+; copy or build it again"),
    "is emptied": (lambda path: faults.truncate(path, 0), "has 0 bytes now"),
    "is a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
}


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_a_shard_that_disappears_during_a_run_is_named(dataset: Path, name: str, damage: str) -> None:
    act, message = FILE_DAMAGES[damage]
    with open_train(dataset, name) as feed:
        batches = feed.epoch(0)
        next(batches)
        for path in feed.shards.paths:
            act(path)
        pattern = f"^{re.escape(str(dataset))}/train-0000[012]-of-00003: {message}[^\n]*$"
        with pytest.raises(RunFailed, match=pattern):
            list(batches)
        assert not feed.corrupt.lines


@pytest.mark.parametrize("name", READING)
def test_a_step_whose_records_are_good_is_read_again(
    dataset: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All shards disappear for a moment in the middle of an epoch. The batches are the same as without that."""
    with open_train(dataset, name) as feed:
        expected = [(images.numpy(), labels.numpy()) for images, labels in feed.epoch(0)]
    failures = []

    def look(shards: ShardSet, numbers: list[int]) -> str:
        failures.append(numbers)
        for path in hidden:
            path.with_suffix(".away").rename(path)
        return corrupt.problem_of_shards(shards, numbers)

    monkeypatch.setattr(recovery, "problem_of_shards", look)
    with open_train(dataset, name) as feed:
        batches = feed.epoch(0)
        found = [next(batches)]
        hidden = feed.shards.paths
        for path in hidden:
            path.rename(path.with_suffix(".away"))
        with caplog.at_level(logging.WARNING):
            found += batches
        assert feed.loaders[0].skipped == ()
    assert len(failures) == 1
    (line,) = caplog.messages
    assert re.match(
        rf"{name}: epoch 0, step \d+ of the train split failed \(.*\), but all its records .* try 1 of", line
    )
    for (images, labels), (images_before, labels_before) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(labels, labels_before)
        np.testing.assert_array_equal(images, images_before)


@pytest.mark.parametrize("name", READING)
def test_a_shard_that_gives_no_answer_is_named(dataset: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corrupt, "PROBE_SECONDS", 0.3)
    feed = open_train(dataset, name, timeout=60.0)
    next(feed.epoch(0))  # the first batch may take long: it sets everything up
    feed._watches[0].seconds = 1.0
    epoch = 2  # not the next epoch, which is opened in the background
    shard = feed.shards.paths[feed.shards.shard[feed.loaders[0].plan(epoch).records[0]]]
    faults.replace_by_fifo(shard)
    try:
        with pytest.raises(Blocked, match=f"^{re.escape(str(shard))}: gives no answer for 0.3 seconds"):
            next(feed.epoch(epoch))
    finally:
        faults.release_fifo(shard)
    # The waiting reads end now, with errors. TensorFlow's threads parse their tracebacks, and Python 3.11 fails if two
    # threads parse at the same time.
    feed.close()
    wait_for_threads()
    for loader in feed.loaders:
        loader.close()


def test_slow_data_with_good_files_names_the_timeout(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = open_train(dataset, "tfdata", timeout=0.2)
    go_on = threading.Event()
    monkeypatch.setattr(feed.loaders[0], "batches", lambda *_: (go_on.wait() for _ in range(1)))
    with pytest.raises(
        Blocked, match=r"did not arrive within 0.2 seconds, but its shards can be read; choose a longer data_timeout"
    ):
        next(feed.epoch(0))
    go_on.set()
    feed.close()
