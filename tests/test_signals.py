"""Signals that ask a run to end: a checkpoint and exit code 75, and no step is lost."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kimagenet import cli, train
from kimagenet.runs.directory import RunDirectory
from kimagenet.runs.fit import stop_on_signals
from kimagenet.runs.reporters import JsonLines
from kimagenet.runs.saving import KeepCheckpoints
from tests.test_resume import at_step, command

HANGUP, USER, TERM, INT = signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (INT, *cli.END_SIGNALS)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("numbers", [(HANGUP,), (USER,), (HANGUP, HANGUP, HANGUP), (USER, TERM), (TERM, HANGUP)])
def test_a_run_that_is_asked_to_end_can_be_resumed(
    numbers: tuple[int, ...], tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "run")
    monkeypatch.setattr(JsonLines, "on_train_batch_end", at_step(4, lambda: send(*numbers)))
    assert train.main(command(tiny_dataset, run.path, "tfdata")) == cli.EXIT_RESUME
    assert [path.name for path in run.find_checkpoints()] == ["step-000000004.ckpt", "step-000000003.ckpt"]


def test_a_signal_that_repeats_does_not_end_the_writing(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, write_now = RunDirectory(tmp_path / "run"), KeepCheckpoints.write_now

    def write(checkpoints: KeepCheckpoints, path: Path | None = None) -> bool:
        send(HANGUP)
        return write_now(checkpoints, path)

    monkeypatch.setattr(JsonLines, "on_train_batch_end", at_step(4, lambda: send(HANGUP)))
    monkeypatch.setattr(KeepCheckpoints, "write_now", write)
    assert train.main(command(tiny_dataset, run.path, "tfdata")) == cli.EXIT_RESUME
    assert run.checkpoint(4).exists()


@pytest.mark.parametrize("number", cli.END_SIGNALS)
def test_a_signal_before_the_first_step_asks_for_the_same_command(
    number: int, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(train, "build_loop", lambda *_: send(number))
    assert train.main(command(tiny_dataset, tmp_path / "run", "tfdata")) == cli.EXIT_RESUME
    assert f"{tmp_path / 'run'}: stopped before its next step" in capsys.readouterr().out
    monkeypatch.setattr(train, "build_loop", lambda *_: send(INT))
    assert train.main(command(tiny_dataset, tmp_path / "run", "tfdata")) == cli.EXIT_INTERRUPTED


def test_other_commands_end_as_after_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(cli.Parser("x", "", ""), lambda _: send(HANGUP), []) == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_nohup_keeps_its_effect() -> None:
    signal.signal(HANGUP, signal.SIG_IGN)
    stops: list[str] = []

    def work(_: object) -> None:
        send(HANGUP)
        with stop_on_signals(lambda: stops.append("stop")):
            send(HANGUP)

    assert cli.run(cli.Parser("x", "", ""), work, []) == 0
    assert not stops


@pytest.mark.parametrize("numbers", [(TERM, TERM), (INT, TERM), (USER, TERM, INT)])
def test_the_second_urgent_signal_stops_at_once(numbers: tuple[int, ...]) -> None:
    stops: list[str] = []
    act: Callable[[], None] = lambda: stops.append("stop")  # noqa: E731
    with pytest.raises(KeyboardInterrupt, match="resumed from its last checkpoint"), stop_on_signals(act):
        send(*numbers)
    assert stops == ["stop"]
