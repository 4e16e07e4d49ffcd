"""Early stopping and the reduction of the learning rate: as Keras' callbacks, also across a stop and a resume."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from kimagenet import cli, train
from kimagenet.runs.directory import RunDirectory
from kimagenet.runs.monitors import EarlyStopping, ReduceOnPlateau, earlier_losses
from kimagenet.runs.reporters import JsonLines
from kimagenet.training.loop import Loop
from tests.helpers.data import write_tiny_dataset
from tests.helpers.runs import final_weights, read_log

LOSSES = [2.0, 1.5, 1.6, 1.49995, 1.7, 1.2, 1.3, 1.25, 1.2, 1.4, 1.19, 1.3, 1.3, 1.3]


def fake_loop() -> SimpleNamespace:
    rate = keras.Variable(1.0)
    optimizer = SimpleNamespace(learning_rate=rate)
    return SimpleNamespace(rate_factor=1.0, model=SimpleNamespace(stop_training=False, optimizer=optimizer))


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("done", [0, 1, 4, 7])
def test_monitors_decide_as_keras_callbacks(patience: int, done: int) -> None:
    loop, reference = fake_loop(), fake_loop()
    ours = [EarlyStopping(loop, patience, LOSSES[:done]), ReduceOnPlateau(loop, patience, LOSSES[:done])]
    theirs = [
        keras.callbacks.EarlyStopping("val_loss", patience=patience),
        keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.1, patience=patience),
    ]
    for callback in theirs:
        callback.set_model(reference.model)
        callback.on_train_begin()
    for epoch, loss in enumerate(LOSSES[:done]):
        for callback in theirs:
            callback.on_epoch_end(epoch, {"val_loss": loss})
    for callback in ours:
        callback.on_train_begin()
    for epoch, loss in enumerate(LOSSES[done:], done):
        assert loop.model.stop_training == reference.model.stop_training
        assert loop.rate_factor == pytest.approx(float(reference.model.optimizer.learning_rate), rel=1e-5)
        for callback in (*ours, *theirs):
            callback.on_epoch_end(epoch, {"val_loss": loss})
    ours[1].on_epoch_end(99, {"loss": 9.0})  # an epoch without a validation changes nothing


def test_earlier_losses_are_those_of_the_epochs_that_are_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [{"event": "epoch", "epoch": n, "val_loss": loss} for n, loss in enumerate(LOSSES[:4])]
    lines[1:1] = [{"event": "step", "epoch": 0, "val_loss": 9.0}, {"event": "epoch", "epoch": 0, "val_loss": 2.0}]
    lines[3].pop("val_loss")  # epoch 1 had no validation
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "epo')
    assert earlier_losses(log, 3) == [2.0, 1.6]
    assert earlier_losses(log, 3, data_epoch=1) == [1.6]
    assert earlier_losses(log, 3, data_epoch=3) == []
    assert earlier_losses(log, 0) == []
    assert not caplog.records
    assert earlier_losses(tmp_path / "none.jsonl", 2) == []
    assert "begin again" in caplog.text


FLAGS = ["demo", "--image-size=32", "--batch-size=25", "--epochs=30", "--workers=1", "--loader=tfdata"]
FLAGS += ["--iter-size=1", "--reduce-on-plateau=1", "--initial-lr=0.05", "--final-lr=0.05"]


def test_a_run_ends_early_and_a_resumed_one_at_the_same_epoch(
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [*FLAGS, f"--dataset-dir={tiny_dataset}", "--early-stopping=2"]
    script = [2.0, 1.5, 1.6, 1.4, 1.5, 1.6, 9.0, 9.0]
    monkeypatch.setattr(Loop, "_evaluate", lambda self, feed, epoch: {"loss": script[epoch], "top1": 0.5, "top5": 0.9})
    whole, run = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "run")
    assert train.main([*flags, f"--output={whole.path}"]) == 0
    assert f"{whole.path}: a callback ended the training after step " in capsys.readouterr().out
    epochs = read_log(whole, "epoch")
    assert [line["val_loss"] for line in epochs] == script[:6]
    rates = [line["learning_rate"] for line in epochs]
    assert rates == pytest.approx([0.05, 0.05, 0.05, 0.005, 0.005, 0.0005])

    original = JsonLines.on_epoch_end
    ended: list[int] = []

    def stop(self: JsonLines, epoch: int, logs: dict | None = None) -> None:
        original(self, epoch, logs)
        if epoch == len(epochs) - 2 and not ended:
            ended.append(epoch)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(JsonLines, "on_epoch_end", stop)
    assert train.main([*flags, f"--output={run.path}"]) == cli.EXIT_RESUME
    assert train.main(["--resume", f"--output={run.path}"]) == 0
    again = read_log(run, "epoch")
    assert [(line["epoch"], line["learning_rate"]) for line in again] == [(n, rate) for n, rate in enumerate(rates)]
    for a, b in zip(final_weights(whole), final_weights(run), strict=True):
        np.testing.assert_array_equal(a, b)
    capsys.readouterr()
    assert train.main([*flags, f"--output={run.path}"]) == 0
    assert "this run is finished" in capsys.readouterr().out


def test_losses_of_other_data_do_not_count(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    other = write_tiny_dataset(tmp_path / "other", seed=1)
    script = [0.1, 5.0, 4.0, 4.5]
    monkeypatch.setattr(Loop, "_evaluate", lambda self, feed, epoch: {"loss": script[epoch], "top1": 0.5, "top5": 0.9})
    run = RunDirectory(tmp_path / "run")
    flags = ["demo", "--image-size=32", "--batch-size=50", "--workers=1", "--loader=tfdata"]
    flags += ["--early-stopping=1", f"--output={run.path}"]
    assert train.main([*flags, "--epochs=1", f"--dataset-dir={tiny_dataset}"]) == 0
    assert train.main([*flags, "--epochs=2", f"--dataset-dir={other}", "--force-resume"]) == 0
    assert train.main([*flags, "--epochs=9", f"--dataset-dir={other}", "--force-resume"]) == 0
    assert [line["val_loss"] for line in read_log(run, "epoch")] == script
    assert "a callback ended the training" in capsys.readouterr().out


def test_callbacks_of_the_user(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_callbacks.py").write_text(
        "import keras\n"
        "class Count(keras.callbacks.Callback):\n"
        "    seen = []\n"
        "    def on_epoch_end(self, epoch, logs=None):\n"
        "        self.seen.append((epoch, sorted(logs)))\n"
        "        self.model.stop_training = epoch == 1\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["demo", "--image-size=32", "--batch-size=50", "--epochs=5", "--workers=1", "--loader=tfdata"]
    flags += [f"--dataset-dir={tiny_dataset}", f"--output={tmp_path / 'run'}"]
    assert train.main([*flags, "--callback=my_callbacks:wrong"]) == 2
    assert "my_callbacks:wrong: returned int, not a Keras callback (--callback)" in capsys.readouterr().err
    assert train.main([*flags, "--callback=my_callbacks:Count", "--validate-every=2"]) == 0
    import my_callbacks

    assert [epoch for epoch, _ in my_callbacks.Count.seen] == [0, 1]
    assert my_callbacks.Count.seen[0][1] == ["learning_rate", "loss", "top1"]
    assert my_callbacks.Count.seen[1][1] == ["learning_rate", "loss", "top1", "val_loss", "val_top1", "val_top5"]
