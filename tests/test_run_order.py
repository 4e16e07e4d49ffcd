"""A run keeps its order of records: over releases, window by window, and only if NumPy still gives the same."""

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from kimagenet import cli, train, train_settings
from kimagenet.runs.directory import RunDirectory
from kimagenet.runs.reporters import JsonLines
from pipelines import ShardSet
from pipelines.order import window
from pipelines.order.spec import ShuffleSpec
from tests.helpers.kill_proof import noting_batches, read_notes
from tests.test_resume import STEPS_PER_EPOCH, assert_same, at_step, send
from tests.test_resume import command as balanced_command

EARLIER, WINDOWS = ShuffleSpec(1), ShuffleSpec(window=40, block_records=5)


def command(dataset: Path, output: Path, loader: str) -> list[str]:
    return balanced_command(dataset, output, loader, "--sampling=all")


def run_with(shuffle: ShuffleSpec, arguments: list[str], stop_at: int = 0) -> int:
    """Trains with an order, as if no run had begun; stops after `stop_at` steps."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_settings, "_shuffle", lambda *_: shuffle)
        if stop_at:
            patched.setattr(JsonLines, "on_train_batch_end", at_step(stop_at, lambda: send(signal.SIGTERM)))
        return train.main(arguments)


@pytest.fixture(scope="module", params=[EARLIER, WINDOWS], ids=str)
def stopped(
    request: pytest.FixtureRequest, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ShuffleSpec, RunDirectory, RunDirectory]:
    """An order, a run with it, and a run with it that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("orders")
    for name, stop_at in (("whole", 0), ("stopped", STEPS_PER_EPOCH + 4)):
        with noting_batches(folder / f"{name}.jsonl"):
            code = run_with(request.param, command(tiny_dataset, folder / name, "tfdata"), stop_at)
        assert code == (cli.EXIT_RESUME if stop_at else 0)
    return request.param, RunDirectory(folder / "whole"), RunDirectory(folder / "stopped")


@pytest.fixture
def stopped_run(stopped: tuple[ShuffleSpec, RunDirectory, RunDirectory], tmp_path: Path) -> RunDirectory:
    run = RunDirectory(shutil.copytree(stopped[2].path, tmp_path / "run"))
    if stopped[0] == EARLIER:  # an earlier release did not write the field
        info = run.read_info()
        del info["order"]
        run.info.write_text(json.dumps(info))
    return run


def test_a_run_continues_with_the_order_that_it_began_with(
    stopped: tuple[ShuffleSpec, RunDirectory, RunDirectory],
    stopped_run: RunDirectory,
    tiny_dataset: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    shuffle, whole, first_part = stopped
    notes = Path(shutil.copy(first_part.path.with_suffix(".jsonl"), stopped_run.path.with_suffix(".jsonl")))
    with noting_batches(notes):
        assert train.main(command(tiny_dataset, stopped_run.path, "tfdata")) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("order")]
    if shuffle == WINDOWS:
        (line,) = lines
        assert re.fullmatch(
            r"order   blocks of 5 neighbours \(\d+\.\d kB\), mixed .* 40 records \(.* of memory\)", line
        )
    else:
        assert not lines
    assert_same(stopped_run, whole)
    assert read_notes(notes) == read_notes(whole.path.with_suffix(".jsonl"))
    shards = ShardSet.open(tiny_dataset, "train")
    chosen = shuffle.resolved(shards)
    assert stopped_run.read_info()["order"] == {
        "version": chosen.version,
        "window": chosen.window,
        "block_records": chosen.block_records,
        "is_balanced": False,
        "digest": shuffle.digest(shards, 0),
    }


def test_another_order_is_refused_before_anything_is_changed(
    stopped: tuple[ShuffleSpec, RunDirectory, RunDirectory],
    stopped_run: RunDirectory,
    tiny_dataset: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = command(tiny_dataset, stopped_run.path, "tfdata")
    info = stopped_run.read_info()
    shards = ShardSet.open(tiny_dataset, "train")
    known = stopped[0].resolved(shards)
    order = {"version": known.version, "window": known.window, "block_records": known.block_records}
    info["order"] = {**order, "digest": known.digest(shards, 0)}
    stopped_run.info.write_text(json.dumps(info))
    default_rng, lanes = np.random.default_rng, window._REVERSED
    monkeypatch.setattr(np.random, "default_rng", lambda seed=None: default_rng([*np.ravel(seed), 1]))
    monkeypatch.setattr(window, "_REVERSED", lanes[::-1])
    assert known.digest(shards, 0) != info["order"]["digest"]
    before = {path: path.read_bytes() for path in stopped_run.path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {stopped_run.path}: its records would come in another order than before, because")
    assert line.endswith("use the versions in run.json, or resume it anyway (--force-resume)")
    assert {path: path.read_bytes() for path in stopped_run.path.rglob("*") if path.is_file()} == before
