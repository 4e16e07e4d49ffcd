"""tools.launch: which exit code it returns, which worker it names, and that no worker outlives it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kimagenet import cli
from tools import launch
from tools.launch import Failure, first_failure

ROOT = Path(__file__).parents[1]
KILLED, ABORTED = -signal.SIGKILL, -signal.SIGABRT

# What the workers of these tests do, instead of a training: by rank, as lines of Python.
WAIT = "time.sleep(60)"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
START_OF_WORKER = "import json, os, signal, sys, time; rank = json.loads(os.environ['TF_CONFIG'])['task']['index']"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The launcher replaces the handlers of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def command(*programs: str) -> list[str]:
    """A command that runs the program of its rank."""
    return [sys.executable, "-c", f"{START_OF_WORKER}; exec({programs!r}[rank])"]


def run(folder: Path, *programs: str, grace: float = 30.0) -> int:
    return launch.run_workers(command(*programs), len(programs), folder, grace)


@pytest.mark.parametrize(
    ("codes", "failure", "exit_code"),
    [
        ([0, 0], None, 0),
        ([None, 0, None], None, 0),
        ([KILLED, None], Failure(0, KILLED), 75),
        ([75, KILLED], Failure(1, KILLED), 75),
        ([ABORTED, KILLED, 75], Failure(1, KILLED), 75),
        ([75, ABORTED], Failure(1, ABORTED), 75),
        ([75, 75], Failure(0, 75), 75),
        ([75, 2], Failure(1, 2), 2),
        ([ABORTED, 1], Failure(1, 1), 1),
        ([None, -signal.SIGSEGV], Failure(1, -signal.SIGSEGV), 75),
        ([130, 75], Failure(0, 130), 130),
    ],
)
def test_the_failure_that_caused_the_others_gives_the_exit_code(
    codes: list[int | None], failure: Failure | None, exit_code: int
) -> None:
    assert first_failure(codes) == failure
    assert (failure.exit_code if failure else 0) == exit_code


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_killed_worker_is_named_with_its_log_and_the_run_can_be_resumed(
    killed: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    programs = ["time.sleep(1); sys.exit(75)"] * 3
    programs[killed] = f"print('out of memory', file=sys.stderr, flush=True); {KILL}"
    assert run(tmp_path, *programs) == cli.EXIT_RESUME
    errors = capsys.readouterr().err
    log = tmp_path / f"worker-{killed}.log"
    assert f"worker {killed} was killed by SIGKILL; its log is {log}" in errors
    assert errors.endswith("the same command resumes the run\n")
    assert log.read_text() == "out of memory\n"
    assert errors.count("out of memory") == 1


def test_workers_that_all_end_at_once_are_named_too(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path, KILL, KILL) == cli.EXIT_RESUME
    assert "worker 0 was killed by SIGKILL; its log is" in capsys.readouterr().err


def test_an_error_keeps_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path, "time.sleep(0.5); sys.exit(75)", "sys.exit(2)") == 2
    errors = capsys.readouterr().err
    assert f"worker 1 ended with exit code 2; its log is {tmp_path / 'worker-1.log'}" in errors
    assert "resumes" not in errors


def test_workers_that_do_not_stop_in_time_are_killed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    start = time.monotonic()
    assert run(tmp_path, WAIT, KILL, grace=0.2) == cli.EXIT_RESUME
    assert time.monotonic() - start < 30
    errors = capsys.readouterr().err
    assert "worker 1 was killed by SIGKILL" in errors
    assert "the other workers have 0.2 s to stop" in errors
    assert "worker 0" not in errors


def test_workers_that_finish_leave_no_message(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path, "pass", "time.sleep(0.2)") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_launcher(how: signal.Signals, tmp_path: Path) -> None:
    stop = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); open(f'ready-{rank}', 'w').close(); time.sleep(60)"
    program = (
        "import sys; from pathlib import Path; from tools import launch;"
        f"sys.exit(launch.run_workers({command(stop, stop)!r}, 2, Path({str(tmp_path)!r}), 30.0))"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    wait_for(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
    workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(workers) == 2
    launcher.send_signal(how)
    assert launcher.wait(timeout=30) == (-how if how == signal.SIGKILL else cli.EXIT_RESUME)
    wait_for(lambda: not any(is_running(worker) for worker in workers))


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: str) -> bool:
    """Whether a process is alive; one that has ended but was not waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_log_folder_that_cannot_be_made_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert launch.main(["--workers=2", f"--log-dir={tmp_path / 'file'}", "demo"]) == cli.EXIT_USER_ERROR
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {tmp_path / 'file'}: cannot be used as the folder for the logs")
    assert errors.endswith("choose another one (--log-dir)\n")


def test_a_training_whose_first_worker_is_killed_can_be_resumed(tiny_dataset: Path, tmp_path: Path) -> None:
    arguments = ["demo", "--image-size=32", "--batch-size=12", "--epochs=50", "--workers=1", "--loader=tfdata"]
    arguments += [f"--dataset-dir={tiny_dataset}", f"--output={tmp_path / 'run'}", "--checkpoint-steps=3"]
    program = [sys.executable, "-m", "tools.launch", "--workers=2", f"--log-dir={tmp_path / 'logs'}", *arguments]
    launcher = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(tmp_path.glob("run/checkpoints/step-*.ckpt")) or launcher.poll() is not None)
    first, _ = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(first), signal.SIGKILL)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == cli.EXIT_RESUME
    assert f"worker 0 was killed by SIGKILL; its log is {tmp_path / 'logs' / 'worker-0.log'}" in errors
    assert "another worker was lost" in (tmp_path / "logs" / "worker-1.log").read_text()
