"""Several workers: their ranks, the same training as one process, a lost worker, resuming with fewer."""

import json
import os
import signal
import socket
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
from tests.helpers.programs import environment
from tests.helpers.runs import read_log
from tools.launch import free_ports

ROOT = Path(__file__).parents[1]
# A small rate: sums have another order, and BatchNormalization's rounding errors grow from step to step.
FLAGS = ["demo", "--image-size=32", "--batch-size=12", "--epochs=2", "--workers=1", "--loader=tfdata", "--log-steps=1"]
FLAGS += ["--optimizer=sgd", "--initial-lr=0.002", "--lr-sched=constant", "--checkpoint-steps=3"]


def task(index: int, job: str = "worker", **jobs: list[str]) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": job, "index": index}})}


def test_tf_config_gives_the_rank() -> None:
    assert Cluster.from_environment({}) == Cluster(1, 0)
    assert Cluster.from_environment(task(0, worker=["a:1"])) == Cluster(1, 0)
    assert Cluster.from_environment(task(2, worker=["a:1", "b:1", "c:1"])) == Cluster(3, 2, ("a:1", "b:1", "c:1"))
    assert Cluster.from_environment(task(0, chief=["a:1"], worker=["b:1", "c:1"])) == Cluster(
        3, 1, ("a:1", "b:1", "c:1")
    )
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
        {"TF_CONFIG": '{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}'},
        {"TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": ["worker"], "index": 0}}'},
        *(task(index, worker=["a:1", "b:1"]) for index in ("0", "", 0.5, True, None)),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_tf_config_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(UserError, match="TF_CONFIG"):
        Cluster.from_environment(environment)


@pytest.mark.parametrize("text", ["", " ", "1", " 1 ", "0"])
@pytest.mark.parametrize("config", [{}, {"TF_CONFIG": ""}, {"TF_CONFIG": " "}])
def test_an_empty_variable_counts_as_one_that_is_not_set(text: str, config: dict[str, str]) -> None:
    assert Cluster.from_environment({"SLURM_STEP_NUM_TASKS": text, **config}) == Cluster()


@pytest.mark.parametrize("text", ["x", "2 tasks", "1.5", "٢x"])
def test_a_number_of_slurm_tasks_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"SLURM_STEP_NUM_TASKS is a number of tasks, not '{text}'; correct or unset"):
        Cluster.from_environment({"SLURM_STEP_NUM_TASKS": text})
    assert Cluster.from_environment({"SLURM_STEP_NUM_TASKS": text, "TF_CONFIG": "{}"}) == Cluster()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, None) for name in ("SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_PROCID")),
        *((name, "") for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_PROCID")),
        ("SLURM_STEP_TASKS_PER_NODE", "x"),
        ("SLURM_STEP_TASKS_PER_NODE", "1"),
        ("SLURM_STEP_NODELIST", "node[1-"),
        ("SLURM_PROCID", "x"),
        ("SLURM_PROCID", "9"),
    ],
)
def test_other_wrong_variables_of_slurm_are_refused(
    name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_slurm(monkeypatch)
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="SLURM's variables name no workers"):
        Cluster.from_environment()


def set_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of the third of three tasks on two nodes."""
    slurm = {
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
        "SLURM_PROCID": "2",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TF_CONFIG", raising=False)


@pytest.mark.slow
def test_slurm_tasks_become_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    set_slurm(monkeypatch)
    cluster = Cluster.from_environment()
    assert (cluster.size, cluster.rank) == (3, 2)
    addresses = json.loads(os.environ.pop("TF_CONFIG"))["cluster"]["worker"]
    assert [address.split(":")[0] for address in addresses] == ["node1", "node1", "node2"]
    assert len(set(addresses)) == 3
    assert cluster.addresses == tuple(addresses)


WAIT = """
import socket, sys
from kimagenet import cli
from kimagenet.training import cluster
cluster._QUIET_SECONDS = 1.0

def wait(_):
    place = cluster.Cluster.from_environment()
    place.wait_for_all()
    with socket.create_server(cluster._split(place.addresses[place.rank])):  # as TensorFlow's server
        print("all are there", flush=True)
        sys.stdin.read()

sys.exit(cli.run(cli.Parser("x", "", ""), wait, []))
"""


def start_waiting(rank: int, addresses: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WAIT],
        env=environment(**task(rank, worker=addresses)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_workers_wait_for_each_other_in_any_order() -> None:
    addresses = [f"localhost:{port}" for port in free_ports(3)]
    workers = []
    for rank in (2, 0, 1):
        workers.append(start_waiting(rank, addresses))
        time.sleep(0.7)
    assert [worker.stdout.readline() for worker in workers if worker.stdout] == ["all are there\n"] * 3
    assert all(worker.communicate(timeout=60) and worker.returncode == 0 for worker in workers)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_workers_that_do_not_come_are_named_and_signals_end_the_wait(number: int, code: int) -> None:
    addresses = [f"localhost:{port}" for port in free_ports(2)] + ["no-such-host.invalid:1"]
    worker = start_waiting(1, addresses)
    assert worker.stderr
    line = worker.stderr.readline()
    assert line.startswith("worker 1 has waited ")
    assert f"s for workers 0 at {addresses[0]}, 2 at no-such-host.invalid:1; start what is missing" in line
    worker.send_signal(number)
    _, errors = worker.communicate(timeout=30)
    assert worker.returncode == code
    assert errors.endswith("interrupted\n")


def test_a_port_that_is_in_use_is_left_to_tensorflow() -> None:
    with socket.create_server(("localhost", 0)) as one, socket.create_server(("localhost", 0)) as other:
        addresses = tuple(f"localhost:{server.getsockname()[1]}" for server in (one, other))
        Cluster(2, 0, addresses).wait_for_all()


@pytest.mark.parametrize("address", ["localhost", "localhost:x", ""])
def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=f"TF_CONFIG: '{address}' is not host:port; correct or unset it"):
        Cluster(2, 0, (address, "localhost:1")).wait_for_all()


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
