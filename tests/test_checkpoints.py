"""Checkpoints of a run: correct or refused after any damage, complete with loss scaling, none out of date."""

import dataclasses
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kimagenet.recipe import Recipe
from kimagenet.runs.checkpoint import Checkpoint
from kimagenet.runs.directory import RunDirectory
from kimagenet.runs.restoring import restore
from kimagenet.runs.saving import KeepCheckpoints
from kimagenet.training.loop import Loop
from kimagenet.training.results import Position
from pipelines import UserError
from tests.test_loop import make_model, open_split

DAMAGES = 100
STEPS = 4  # per epoch, with batches of 25
START = Position()


def make_loop(feed, seed: int = 0) -> Loop:
    return Loop(make_model(seed), keras.optimizers.SGD(0.1, momentum=0.9), feed, seed=seed)


def train(loop: Loop, path: Path, every: int = 1, keep: int = 3, epochs: int = 1, start: Position = START) -> None:
    """Trains a run that only writes checkpoints."""
    run = RunDirectory(path)
    run.begin(Recipe(), {})
    loop.fit(epochs, [KeepCheckpoints(loop, run, every, keep)], start)


@pytest.fixture(scope="module")
def two_runs(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[RunDirectory]:
    """Two runs of the same recipe and network, with different weights."""
    runs = [RunDirectory(tmp_path_factory.mktemp("runs") / name) for name in ("a", "b")]
    with open_split(tiny_dataset, "train", 25) as feed:
        for seed, run in enumerate(runs):
            train(make_loop(feed, seed), run.path)
    return runs


def damage(rng: np.random.Generator, mine: RunDirectory, other: RunDirectory) -> None:
    """Damages one of the checkpoints in one of six ways."""
    found = mine.find_checkpoints()
    path = found[rng.integers(len(found))]
    data = path.read_bytes()
    cut = int(rng.integers(len(data)))
    kinds: list[Callable[[], object]] = [
        lambda: path.write_bytes(data[:cut]),
        lambda: path.write_bytes(data[:cut] + bytes([data[cut] ^ 1 << int(rng.integers(8))]) + data[cut + 1 :]),
        lambda: path.write_bytes(data[:cut] + bytes(len(data) - cut)),
        path.unlink,
        lambda: path.write_bytes(other.find_checkpoints()[rng.integers(3)].read_bytes()),
        lambda: path.rename(mine.checkpoint(int(rng.integers(9)))),
    ]
    kinds[rng.integers(len(kinds))]()


def test_no_damage_leads_to_a_wrong_resume(two_runs: list[RunDirectory], tiny_dataset: Path, tmp_path: Path) -> None:
    """The result is the values that the run had at that step, an error, or the beginning if there is no file."""
    rng = np.random.default_rng(0)
    first, other = two_runs
    right = {path.name: Checkpoint.read(path).arrays for path in first.find_checkpoints()}
    outcomes: Counter[str] = Counter()
    with open_split(tiny_dataset, "train", 25) as feed:
        loop = make_loop(feed)
        for number in range(DAMAGES):
            run = RunDirectory(shutil.copytree(first.path, tmp_path / str(number)))
            for _ in range(rng.integers(1, 6)):
                if run.find_checkpoints():
                    damage(rng, run, other)
            for variable in loop.variables:
                variable.assign(np.full(variable.shape, 77, variable.dtype))
            try:
                position = restore(loop, run)
            except UserError:
                outcomes["refused"] += 1
                continue
            if position == START:
                assert not run.find_checkpoints()
                outcomes["started again"] += 1
                continue
            step = position.epoch * STEPS + position.step
            outcomes[f"at step {step}"] += 1
            for value, expected in zip(loop.values(), right[run.checkpoint(step).name], strict=True):
                np.testing.assert_array_equal(value, expected)
    assert {"refused", "at step 2", "at step 3", "at step 4"} <= set(outcomes), outcomes


def test_a_checkpoint_of_another_run_is_passed_over(
    two_runs: list[RunDirectory], tiny_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, other = two_runs
    run = RunDirectory(shutil.copytree(first.path, tmp_path / "run"))
    newest, second, third = run.find_checkpoints()
    newest.write_bytes((other.checkpoints / newest.name).read_bytes())
    second.write_bytes(third.read_bytes())
    with open_split(tiny_dataset, "train", 25) as feed:
        assert restore(make_loop(feed), run).step == 2
    assert [record.message for record in caplog.records] == [
        f"{newest}: it belongs to another run; using the one before",
        f"{second}: its name is wrong: it contains step 2; using the one before",
    ]


def test_training_continues_while_a_checkpoint_is_written(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_step_is_done = threading.Event()
    write = Checkpoint.write

    def write_later(self: Checkpoint, path: Path) -> None:
        if self.state["step"] == 1:
            assert next_step_is_done.wait(60)
        write(self, path)

    monkeypatch.setattr(Checkpoint, "write", write_later)
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: batch < 1 or next_step_is_done.set())
    run = RunDirectory(tmp_path / "run")
    run.begin(Recipe(), {})
    with open_split(tiny_dataset, "train", 25) as feed:
        loop = make_loop(feed)
        loop.fit(1, [note, KeepCheckpoints(loop, run, every=1, keep=9)])
    assert len(run.find_checkpoints()) == STEPS


def test_a_forced_resume_removes_checkpoints_of_later_steps(tiny_dataset: Path, tmp_path: Path) -> None:
    with open_split(tiny_dataset, "train", 25) as feed:
        train(make_loop(feed), tmp_path / "run", keep=2, epochs=2)
    run = RunDirectory(tmp_path / "run")
    with open_split(tiny_dataset, "train", 50) as feed:  # two steps an epoch, not four
        loop = make_loop(feed)
        start = dataclasses.replace(restore(loop, run), epoch=1, step=0)
        train(loop, run.path, keep=2, epochs=2, start=start)
        assert [path.name for path in run.find_checkpoints()] == ["step-000000004.ckpt", "step-000000003.ckpt"]
        assert restore(loop, run) == Position(2, 0)


DATA = {"classes": "a", "label base": "0", "train shards": "b", "train quarantine": "c", "validation shards": "d"}


@pytest.mark.parametrize("is_begun_again", [False, True])  # killed after run.json named the new data set
@pytest.mark.parametrize(
    ("changes", "best", "skipped"),
    [
        ({}, 0.9, [3]),
        ({"train quarantine": "x"}, 0.9, [3]),
        ({"classes": "x"}, -1.0, [3]),
        ({"validation shards": "x"}, -1.0, [3]),
        ({"train shards": "x", "classes": "x"}, -1.0, []),
    ],
)
def test_the_best_model_begins_again_with_other_data(
    tiny_dataset: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    is_begun_again: bool,
    changes: dict[str, str],
    best: float,
    skipped: list[int],
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin(Recipe(), {"identity": DATA})
    now = DATA | changes
    with open_split(tiny_dataset, "train", 25) as feed:
        loop = make_loop(feed)
        feed.corrupt.lines.append({"split": "train", "record": 3})
        loop.fit(1, [KeepCheckpoints(loop, run, 1, 3)], Position(best_top1=0.9))
    for path in (run.best, run.last):
        path.write_bytes(b"of the first data set")
    if is_begun_again:
        run.begin(Recipe(), {"identity": now})
    with open_split(tiny_dataset, "train", 25) as feed, caplog.at_level("WARNING", "kimagenet"):
        position = Position(1, best_top1=best, data_epoch=0 if best > 0 else 1)
        assert restore(make_loop(feed), run, dataset=now) == position
        assert feed.corrupt.of("train") == skipped
    earlier = [path.with_stem(f"{path.stem}-of-earlier-data") for path in (run.best, run.last)]
    assert [path.exists() for path in (run.best, *earlier)] == (
        [True, False, False] if best > 0 else [False, True, True]
    )
    told = [] if best > 0 else [f"{run.path}: the data set has other {', '.join(changes)}; the best model and"]
    if "train shards" in changes:
        told = [f"{run.path}: the data set has other classes, train shards; the best model and"]
    assert [
        message.partition(" the lowest loss begin again with this data; best.keras, last.keras renamed")[0]
        for message in caplog.messages
    ] == told


def test_the_loss_scale_is_resumed(tiny_dataset: Path, tmp_path: Path) -> None:
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        loops = []
        with open_split(tiny_dataset, "train", 25) as feed:
            for _ in range(2):
                optimizer = keras.optimizers.LossScaleOptimizer(
                    keras.optimizers.SGD(0.1), 1024.0, dynamic_growth_steps=3
                )
                loops.append(Loop(make_model(), optimizer, feed))
            train(loops[0], tmp_path / "run", every=2)
            restore(loops[1], RunDirectory(tmp_path / "run"))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    scales = [(float(o.dynamic_scale), int(o.step_counter)) for o in (loop.model.optimizer for loop in loops)]
    assert scales == [(2048.0, 1)] * 2
    assert tf.as_dtype(loops[0].model.layers[1].compute_dtype) == tf.float16
