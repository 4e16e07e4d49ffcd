"""One measurement of `bench gpu` in a separate process, with a time limit. A crash or a hang is a result."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kimagenet.diagnosis.decoding import WARNINGS, decoder_warnings, how_it_ended
from pipelines.system.standard_streams import take_stdout

# "done"; "skipped": does not apply here; "failed": an exception; "crashed": a signal; "hung": no end within the limit;
# "cut": stopped before its limit because the time for all cases was over.
STATES = ("done", "skipped", "failed", "crashed", "hung", "cut")
_LAST_LINES = 8


@dataclass(frozen=True)
class Settings:
    """What all cases are measured with.

    Attributes:
        dataset_dir: a folder of shards.
        split: one of its splits.
        device: "gpu", or "cpu" for a rehearsal.
        seconds: length of one measurement.
        short: a rehearsal in seconds: as few images as possible.
        image_size: side of the images that loaders give, pixels.
    """

    dataset_dir: str
    split: str = "train"
    device: str = "gpu"
    seconds: float = 3.0
    short: bool = False
    image_size: int = 224


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        step: the letter of its question, "a" to "h".
        name: unique within its step.
        function: "module:function" below bench.gpu, which takes `Settings` and the arguments, and yields figures.
        arguments: its keyword arguments.
        limit: seconds that its process may take.
    """

    step: str
    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    limit: float = 60.0

    @property
    def key(self) -> str:
        """Names it among all cases."""
        return f"{self.step} {self.name}"


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        key: of the case.
        state: one of `STATES`.
        seconds: how long its process took.
        figures: what it measured, also before it crashed or was stopped.
        said: why it did not end well: the last lines that it wrote.
    """

    key: str
    state: str
    seconds: float
    figures: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"{self.state!r} is not one of {STATES}")


def run_case(case: Case, settings: Settings, time_left: float) -> Outcome:
    """Runs a case in a separate process and waits for it, no longer than its limit and the time that is left."""
    limit = min(case.limit, time_left)
    work = {"function": case.function, "arguments": dict(case.arguments), "settings": dataclasses.asdict(settings)}
    command = [sys.executable, "-m", "bench.gpu.case", json.dumps(work)]
    environment = os.environ | WARNINGS | {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as answers,
        tempfile.TemporaryFile("w+", errors="replace") as notes,
    ):
        process = subprocess.Popen(command, stdout=answers, stderr=notes, env=environment, start_new_session=True)
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_group(process)
        answers.seek(0)
        notes.seek(0)
        found, lines = answers.read().splitlines(), notes.read().splitlines()
    seconds = round(time.perf_counter() - began, 1)
    return outcome(case, code, found, lines, seconds, was_cut=limit < case.limit)


def _end_group(process: subprocess.Popen) -> None:
    """Ends a process and those that it has started: they are a separate session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def outcome(
    case: Case, code: int | None, answers: list[str], lines: list[str], seconds: float, was_cut: bool
) -> Outcome:
    """Judges a process.

    Args:
        case: what it was.
        code: its exit code, negative for a signal, None if it was stopped.
        answers: the lines of its stdout, each a JSON object.
        lines: the lines of its stderr.
        seconds: how long it took.
        was_cut: whether it had less time than its limit.
    """
    figures: dict[str, Any] = {}
    for answer in answers:
        figures |= json.loads(answer)
    if warnings := decoder_warnings(lines):
        figures |= {"decoder_warnings": len(warnings), "first_warning": warnings[0].strip()[:300]}
    if code == 0 and "skipped" in figures:
        return Outcome(case.key, "skipped", seconds, {}, (str(figures["skipped"]),))
    if code == 0 and figures.get("is_right") is False:
        return Outcome(case.key, "failed", seconds, figures, ("the result is not as it should be",))
    if code == 0:
        return Outcome(case.key, "done", seconds, figures)
    said = [line for line in lines if line.strip() and "[INFO]" not in line]
    last = tuple(line[:300] for line in said[-_LAST_LINES:])
    if code is None:
        how = f"no end within {seconds:.0f} seconds"
        return Outcome(case.key, "cut" if was_cut else "hung", seconds, figures, (how, *last))
    state = "crashed" if code < 0 else "failed"
    return Outcome(case.key, state, seconds, figures, (how_it_ended(code), *last))


def main(work: Mapping[str, Any]) -> None:
    """The process: writes a line for each group of figures to stdout, as they come."""
    from importlib import import_module

    out = take_stdout()
    module, name = work["function"].split(":")
    function = getattr(import_module(f"bench.gpu.{module}"), name)
    for figures in function(Settings(**work["settings"]), **work["arguments"]):
        print(json.dumps(figures), file=out, flush=True)
    sys.stdout.flush()
    os._exit(0)  # how libraries end is not the question


def crash(settings: Settings) -> Any:
    """For a rehearsal: a process that a library ends."""
    yield {"before": 1}
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(settings: Settings) -> Any:
    """For a rehearsal: a process that gives no answer."""
    yield {"before": 1}
    time.sleep(3600)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
