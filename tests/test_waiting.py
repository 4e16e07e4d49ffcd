"""Data that does not come: a line says what is awaited and from where, and a signal ends the process."""

import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kimagenet import cli
from kimagenet.runs.directory import RunDirectory
from kimagenet.training import feed as feeds
from kimagenet.training.feed import Feed, GivenUp
from tests.helpers import faults
from tests.helpers.programs import environment
from tests.test_reading import open_train


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    return faults.copy_dataset(tiny_dataset, tmp_path / "shards")


@pytest.fixture
def late(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    """A feed whose batches come at the end of the test."""
    monkeypatch.setattr(feeds, "_QUIET_SECONDS", 0.5)
    monkeypatch.setattr(feeds, "_PATIENCE_SECONDS", 1.0)
    come = threading.Event()
    feed = open_train(dataset, "tfdata")
    monkeypatch.setattr(feed.loaders[0], "batches", lambda *_: (come.wait() for _ in range(1)))
    yield feed
    come.set()
    feed.close()


def test_a_batch_that_is_late_is_named_once(late: Feed, caplog: pytest.LogCaptureFixture) -> None:
    end = time.monotonic() + 2
    late.gives_up = lambda: time.monotonic() > end
    with caplog.at_level(logging.WARNING), pytest.raises(GivenUp):
        next(late.epoch(3, 2))
    (line,) = caplog.messages
    where = re.escape(str(late.shards.paths[0].parent))
    assert re.match(rf"{where}: has waited 1 s for epoch 3, step 2 of the train split \(tfdata\); check its disk", line)
    assert "there is no time limit (data_timeout)" in line
    assert late.is_blocked


def test_a_run_that_ends_waits_a_moment_for_its_batch(late: Feed) -> None:
    began = time.monotonic()
    late.gives_up = lambda: True
    with pytest.raises(GivenUp):
        next(late.epoch(0))
    assert time.monotonic() - began > 1


@pytest.mark.parametrize("loader", ["tfdata", "dali"])
def test_a_signal_ends_a_run_whose_data_does_not_come(loader: str, dataset: Path, tmp_path: Path) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    run = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-m", "kimagenet.train", "demo", f"--loader={loader}", f"--dataset-dir={dataset}"]
    command += ["--image-size=32", "--batch-size=8", "--epochs=9999", f"--output={run.path}", "--checkpoint-steps=1"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        wait_for(lambda: len(run.find_checkpoints()) > 1 or process.poll() is not None)
        shards = sorted(dataset.glob("*-of-?????"))
        for shard in shards:
            faults.replace_by_fifo(shard)
        newest = wait_for_silence(run)
        process.send_signal(signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=40)
        finally:
            process.kill()
    assert process.returncode == cli.EXIT_RESUME, output
    assert b"stopped after" in output
    assert run.find_checkpoints()[0] >= newest


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_silence(run: RunDirectory) -> Path:
    """Waits until no checkpoint has come for two seconds; returns the newest one."""
    newest, since = run.find_checkpoints()[0], time.monotonic()
    while time.monotonic() - since < 2:
        if (found := run.find_checkpoints()[0]) != newest:
            newest, since = found, time.monotonic()
        time.sleep(0.1)
    return newest
