"""The file of the FAQ that sends the numbers of a run to a tracker, with real trackers that write to this machine."""

from pathlib import Path

import pytest

from kimagenet import train
from kimagenet.runs.directory import RunDirectory
from tests.helpers.documents import python_file
from tests.helpers.runs import read_log


def train_with(callback: str, dataset: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Trains two epochs with a callback of the page; the validation losses in log.jsonl."""
    (folder / "trackers.py").write_text(python_file("docs/faq.md", "Callbacks that send"), encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    flags = ["--epochs=2", "--image-size=32", "--batch-size=20", "--loader=tfdata", "--workers=1"]
    command = ["demo", f"--dataset-dir={dataset}", f"--output={folder / 'run'}", f"--callback={callback}", *flags]
    assert train.main(command) == 0
    return [line["val_loss"] for line in read_log(RunDirectory(folder / "run")) if line["event"] == "epoch"]


def test_mlflow(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow not installed (`pip install mlflow-skinny`)")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "tracked").as_uri())
    expected = train_with("trackers:to_mlflow", tiny_dataset, tmp_path, monkeypatch)
    run = mlflow.last_active_run()
    assert run is not None
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val_loss")
    assert [(metric.step, metric.value) for metric in history] == list(enumerate(expected))


def test_weights_and_biases(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb not installed (`pip install wandb`)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    expected = train_with("trackers:to_wandb", tiny_dataset, tmp_path, monkeypatch)
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = path.read_bytes()  # records of a log, numbers as JSON
    assert [repr(value).encode() in content for value in expected] == [True, True]
