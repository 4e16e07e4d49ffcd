"""One turn of one candidate, in a separate process, which waits until it is under its limits and the pages are gone."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from bench.timing import Sample
from kimagenet.diagnosis.decoding import how_it_ended
from pipelines.loader import READ_AHEAD

READY, RESULT = "READY", "RESULT "
_START_SECONDS = 300.0  # until TensorFlow and DALI are loaded, on a busy machine
_WORK_SECONDS = 180.0  # a turn may take so much longer than its length
_CLOSE_SECONDS = 20.0  # after the result


@dataclass(frozen=True)
class TurnSpec:
    """What a process measures.

    Attributes:
        candidate: one of our loaders or of the peers.
        directory: the folder of the shards, or a view of it.
        split: of the data set.
        augment: the name of the augmentation.
        batch_size: images in a batch.
        image_size: pixels of a side.
        workers: threads or processes.
        prefetch: batches that are prepared ahead.
        device: "cpu" or "gpu", where dali decodes.
        seconds: length of the turn, without warm-up.
        counter: the file with the counts of requests; "" if there is none.
        read_ahead: records that our loaders fetch ahead.
    """

    candidate: str
    directory: str
    split: str
    augment: str
    batch_size: int
    image_size: int
    workers: int
    prefetch: int
    device: str
    seconds: float
    counter: str = ""
    read_ahead: int = READ_AHEAD


@dataclass(frozen=True)
class Turn:
    """What a process found.

    Attributes:
        images: number of images, without the warm-up.
        seconds: wall time of these images.
        cpu_seconds: CPU time of the process and its children.
        first_batch: seconds from opening the data set to the first batch.
        requests: read requests that the storage answered; None: not counted.
        num_bytes: bytes that the storage delivered; None: not counted.
    """

    images: int
    seconds: float
    cpu_seconds: float
    first_batch: float
    requests: int | None = None
    num_bytes: int | None = None

    @property
    def sample(self) -> Sample:
        """The same as a sample of the timer."""
        return Sample(self.images, self.seconds, self.cpu_seconds)


class TurnFailed(Exception):
    """The process of a turn gave no result. The message says why."""


def run_turn(spec: TurnSpec, before: Callable[[int], None]) -> Turn:
    """Starts a process, waits until its libraries are loaded, and lets it measure.

    Args:
        spec: what it measures.
        before: called with the number of the process before it opens the data set.

    Raises:
        TurnFailed: the process fails or does not answer.
    """
    command = [sys.executable, "-m", "bench.storage.candidate", json.dumps(dataclasses.asdict(spec))]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile("w+", errors="replace") as notes:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=notes,
            text=True,
            env=environment,
            start_new_session=True,
        )
        watch = threading.Timer(_START_SECONDS + _WORK_SECONDS + spec.seconds, _end_session, [process])
        watch.start()
        try:
            answer = _converse(process, before)
        finally:
            watch.cancel()
            _end_session(process)
        if answer is None:
            notes.seek(0)
            raise TurnFailed(_why(process.returncode, notes.read()))
    return Turn(**json.loads(answer))


def _converse(process: subprocess.Popen, before: Callable[[int], None]) -> str | None:
    """Waits for READY, prepares, says go, and returns what follows RESULT; None if the process ends before."""
    assert process.stdin is not None
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == READY:
            before(process.pid)
            with suppress(BrokenPipeError):
                process.stdin.write("\n")
                process.stdin.flush()
        elif line.startswith(RESULT):
            with suppress(subprocess.TimeoutExpired):
                process.wait(_CLOSE_SECONDS)
            return line.removeprefix(RESULT)
    process.wait()
    return None


def _why(code: int | None, notes: str) -> str:
    lines = [line.strip() for line in notes.splitlines() if line.strip()]
    return f"its process {how_it_ended(code or 0)}: {lines[-1] if lines else 'no message'}"


def _end_session(process: subprocess.Popen) -> None:
    """Ends the process and those that it has started, as the workers of a DataLoader."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
