"""Several workers: their ranks, the same training as one process, a lost worker, resuming with fewer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kimagenet import cli, train
from kimagenet.runs.directory import RunDirectory
from kimagenet.training.cluster import Cluster
from pipelines import UserError
from tests.helpers.data import VALIDATION_RECORDS
from tests.helpers.runs import read_log

ROOT = Path(__file__).parents[1]
# A small rate: sums have another order, and BatchNormalization's rounding errors grow from step to step.
FLAGS = ["demo", "--image-size=32", "--batch-size=12", "--epochs=2", "--workers=1", "--loader=tfdata", "--log-steps=1"]
FLAGS += ["--optimizer=sgd", "--initial-lr=0.002", "--lr-sched=constant", "--checkpoint-steps=3"]


def task(index: int, job: str = "worker", **jobs: list[str]) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": job, "index": index}})}


def test_tf_config_gives_the_rank() -> None:
    assert Cluster.from_environment({}) == Cluster(1, 0)
    assert Cluster.from_environment(task(0, worker=["a:1"])) == Cluster(1, 0)
    assert Cluster.from_environment(task(2, worker=["a:1", "b:1", "c:1"])) == Cluster(3, 2)
    assert Cluster.from_environment(task(0, chief=["a:1"], worker=["b:1", "c:1"])) == Cluster(3, 1)
    assert Cluster.from_environment(task(0, "chief", chief=["a:1"], worker=["b:1", "c:1"])).is_chief


@pytest.mark.parametrize(
    "environment",
    [
        {"TF_CONFIG": "{"},
        {"TF_CONFIG": "[]"},
        {"TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:1"]}}'},
        task(2, worker=["a:1", "b:1"]),
        task(0, "chief", worker=["a:1", "b:1"]),
        task(0, worker=["a:1", "b:1"], ps=["c:1"]),
    ],
)
def test_a_wrong_tf_config_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(UserError, match="TF_CONFIG"):
        Cluster.from_environment(environment)


@pytest.mark.slow
def test_slurm_tasks_become_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
        "SLURM_PROCID": "2",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert Cluster.from_environment() == Cluster(3, 2)
    addresses = json.loads(os.environ.pop("TF_CONFIG"))["cluster"]["worker"]
    assert [address.split(":")[0] for address in addresses] == ["node1", "node1", "node2"]
    assert len(set(addresses)) == 3


def launch(dataset: Path, output: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "tools.launch", f"--workers={workers}", "--grace=60", *FLAGS]
    command += [f"--dataset-dir={dataset}", f"--output={output}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def losses(run: RunDirectory) -> np.ndarray:
    return np.array([line["loss"] for line in read_log(run, "step")])


@pytest.mark.slow
def test_workers_train_like_one_process_and_can_resume_after_losing_one(tiny_dataset: Path, tmp_path: Path) -> None:
    one, lost = (RunDirectory(tmp_path / name) for name in ("one", "lost"))
    assert train.main([*FLAGS, f"--dataset-dir={tiny_dataset}", f"--output={one.path}"]) == 0

    workers = launch(tiny_dataset, lost.path, 3)
    deadline = time.monotonic() + 180
    while not lost.find_checkpoints() and time.monotonic() < deadline:
        assert workers.poll() is None, workers.communicate()
        time.sleep(0.01)
    os.kill(last_worker(workers.pid), signal.SIGKILL)
    killed = time.monotonic()
    _, errors = workers.communicate(timeout=120)
    assert workers.returncode in (cli.EXIT_RESUME, 128 + signal.SIGKILL)
    assert time.monotonic() - killed < 60
    assert "--resume" in errors
    assert "Traceback" not in errors

    workers = launch(tiny_dataset, lost.path, 2)
    printed, errors = workers.communicate(timeout=180)
    assert workers.returncode == 0, errors
    assert printed.count("resume  at epoch") == 1
    # Rounding: below 1e-6 at the first step, growing with each step.
    np.testing.assert_allclose(losses(lost), losses(one), rtol=0, atol=2e-4)
    for ours, theirs in zip(read_log(lost, "epoch"), read_log(one, "epoch"), strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], abs=2e-4)
        assert ours["val_top1"] * VALIDATION_RECORDS == pytest.approx(round(ours["val_top1"] * VALIDATION_RECORDS))


def last_worker(parent: int) -> int:
    """The process number of the last worker that `parent` started."""
    return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[-1])
