"""Time limits count the time in which the process runs."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines.errors import BlockedInterrupt
from pipelines.system import watch
from pipelines.system.watch import Countdown, NoAnswer, within
from tests.helpers.programs import environment
from tools import launch

WAITS = """
import sys, threading, time
from pipelines.system.watch import NoAnswer, within
print("waiting", flush=True)
before = time.monotonic()
try:
    within(float(sys.argv[1]), lambda: {act})
    print("answered")
except NoAnswer:
    print("no answer")
"""


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_pause_counts_as_one_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    countdown = Countdown(3.0, tick=0.5)
    for seconds, left in (
        (0.5, 2.5),
        (3600.0, 2.0),
        (0.25, 1.75),
        (86400.0, 1.25),
        (0.5, 0.75),
        (0.5, 0.25),
        (9, -0.25),
    ):
        clock.now += seconds
        assert countdown.left() == left


def test_time_in_which_the_process_computes_counts_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, used = Clock(), [0.0]
    monkeypatch.setattr(watch, "time", clock)
    countdown = Countdown(3.0, tick=0.5, work=lambda: used[0])
    for seconds, worked, left in (
        (0.5, 0.04, 2.5),
        (0.5, 0.2, 2.375),
        (0.5, 1.0, 2.25),
        (3600.0, 1.0, 2.125),
        (0.5, 0, 1.625),
    ):
        clock.now += seconds
        used[0] += worked
        assert countdown.left() == left


def test_a_call_that_computes_has_more_time() -> None:
    def compute() -> str:
        until = time.monotonic() + 0.8
        while time.monotonic() < until:
            pass
        return "done"

    assert within(0.4, compute) == "done"


@pytest.mark.slow
@pytest.mark.parametrize(("act", "end"), [("time.sleep(1.5)", "answered"), ("threading.Event().wait()", "no answer")])
def test_a_process_that_is_suspended_waits_on(act: str, end: str) -> None:
    command = [sys.executable, "-c", WAITS.format(act=act), "3"]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "waiting\n"
        for _ in range(2):
            time.sleep(0.2)
            process.send_signal(signal.SIGSTOP)
            time.sleep(3.5)
            process.send_signal(signal.SIGCONT)
        resumed = time.monotonic()
        assert process.stdout.read().strip() == end
        assert time.monotonic() - resumed < 8


@pytest.mark.parametrize("seconds", [0.05, 0.6, 1.3])
def test_a_call_that_does_not_return_is_found_in_time(seconds: float) -> None:
    release, began = threading.Event(), time.monotonic()
    with pytest.raises(NoAnswer, match=f"no answer within {seconds:g} seconds"):
        within(seconds, release.wait)
    assert seconds <= time.monotonic() - began < seconds + 2
    release.set()


def test_an_answer_that_came_during_a_pause_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch.Countdown, "left", lambda _: 0.0)
    job = watch._Job(lambda: 7)
    job.done.set()
    watch.Watch(1.0)._wait(job)


@pytest.mark.slow
def test_a_suspended_launcher_does_not_kill_its_workers(tmp_path: Path) -> None:
    """The workers have 3 seconds to stop; they need 1, and the launcher is suspended for 4."""
    worker = "import os, sys, time; rank = os.environ['TF_CONFIG'][-3]; time.sleep(1 if rank == '0' else 0);"
    worker += "open(f'done-{rank}', 'w').close(); sys.exit(75)"
    program = "import sys; from pathlib import Path; from tools import launch; sys.exit(launch.run_workers("
    program += f"[sys.executable, '-c', {worker!r}], 2, Path('.'), 3.0))"
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment()) as launcher:
        deadline = time.monotonic() + 60
        while not (tmp_path / "done-1").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(launcher.pid, signal.SIGSTOP)
        time.sleep(4)
        os.kill(launcher.pid, signal.SIGCONT)
        assert launcher.wait(60) == launch.EXIT_RESUME
    assert (tmp_path / "done-0").exists()


def test_a_call_that_returns_while_it_is_interrupted_has_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_GRACE", 30.0)  # a busy machine may be slow
    for _ in range(50):
        with pytest.raises(KeyboardInterrupt) as caught:
            within(60.0, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert type(caught.value) is KeyboardInterrupt


def test_an_interrupt_says_that_the_call_does_not_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_GRACE", 1.0)
    release = threading.Event()
    timer = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(BlockedInterrupt):
        within(60.0, release.wait)
    timer.join()
    release.set()


def test_a_command_whose_read_does_not_return_ends_at_once() -> None:
    program = """
import sys, threading
from kimagenet import cli
from pipelines.system.watch import within
threading.Thread(target=threading.Event().wait).start()  # would hold up the exit

def read(_):
    print("reading", flush=True)
    within(600.0, threading.Event().wait)

sys.exit(cli.run(cli.Parser("x", "", ""), read, []))
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], env=environment(), stdout=pipe, stderr=pipe) as process:
        assert process.stdout
        assert process.stdout.readline() == b"reading\n"
        time.sleep(1)  # until the read has begun
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"\ninterrupted\n")
