"""Starts several workers of one training on this machine's CPU, to try out what a cluster will do.

python -m tools.launch --workers 2 demo --output runs/two --batch-size 32
"""

import argparse
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kimagenet.cli import END_SIGNALS, EXIT_RESUME, Parser, heard, positive_int, run
from pipelines.errors import UserError
from pipelines.system.watch import Countdown

DESCRIPTION = """Starts several workers of `python -m kimagenet.train` on this machine's CPU, connected over loopback,
to try out what a cluster will do. The arguments after the flags are passed to every worker. If a worker fails or is
killed, the others have --grace seconds to stop. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 are passed on to the workers. The
workers stop when the launcher is killed. Exit code: 0 if all workers finished; 75 if the same command resumes the run;
otherwise the exit code of the first worker that failed."""

_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when its parent ends


@dataclass(frozen=True)
class Worker:
    """One process of the training.

    Attributes:
        rank: its number, from 0.
        process: the running process.
        log: the file that its stderr is written to.
        stderr: the same file, open for reading; its position is the end of what was printed.
    """

    rank: int
    process: subprocess.Popen[bytes]
    log: Path
    stderr: BinaryIO

    def show_stderr(self) -> None:
        """Prints what the worker has written to stderr since the last call."""
        sys.stderr.write(self.stderr.read().decode(errors="replace"))
        sys.stderr.flush()


@dataclass(frozen=True)
class Failure:
    """The first worker that failed, and its exit code; negative: the number of the signal that killed it."""

    rank: int
    code: int

    @property
    def exit_code(self) -> int:
        """The exit code of the launcher: a worker that was killed does not prevent the run from being resumed."""
        return EXIT_RESUME if self.code < 0 else self.code

    def __str__(self) -> str:
        if self.code < 0:
            return f"worker {self.rank} was killed by {signal.Signals(-self.code).name}"
        return f"worker {self.rank} ended with exit code {self.code}"


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("python -m tools.launch", "--workers N [MODEL] --output RUN [flags of train]", DESCRIPTION)
    add = parser.add_argument
    add("--workers", type=positive_int, required=True, metavar="N", help="number of processes")
    add("--grace", type=float, default=60, metavar="S", help="seconds that the others have to stop (default: 60)")
    add("--log-dir", type=Path, metavar="DIR", help="folder for the workers' stderr (default: a temporary folder)")
    add("arguments", nargs=argparse.REMAINDER, metavar="…", help="model and flags of kimagenet.train")
    return parser


def launch(flags: argparse.Namespace) -> int:
    """Starts the workers and waits for them.

    Returns:
        The exit code.

    Raises:
        UserError: the folder for the logs cannot be made.
    """
    command = [sys.executable, "-m", "kimagenet.train", *flags.arguments]
    with log_folder(flags.log_dir) as (folder, remove_logs):
        code = run_workers(command, flags.workers, folder, flags.grace)
        if code in (0, EXIT_RESUME) and not any(log.stat().st_size for log in folder.iterdir()):
            remove_logs()
    return code


@contextmanager
def log_folder(given: Path | None) -> Iterator[tuple[Path, Callable[[], None]]]:
    """The folder for the logs, and a function that removes it if it is a temporary one."""
    if given is None:
        folder = Path(tempfile.mkdtemp(prefix="kimagenet-launch-"))
        yield folder, lambda: shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        given.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot be used as the folder for the logs ({error.strerror})",
            path=given,
            remedy="choose another one",
            setting="log_dir",
        ) from None
    yield given, lambda: None


def run_workers(command: Sequence[str], count: int, folder: Path, grace: float) -> int:
    """Starts a command several times as the workers of one cluster, and waits until all have ended.

    Args:
        command: the program and its arguments.
        count: the number of workers.
        folder: where the workers' stderr is written, a file each.
        grace: seconds that the other workers have to stop after one has failed.

    Returns:
        The exit code: 0, 75 if the same command resumes the run, or that of the first worker that failed.
    """
    addresses = [f"localhost:{port}" for port in free_ports(count)]
    workers: list[Worker] = []

    def pass_on(number: int, _: object) -> None:
        passed = signal.SIGTERM if number == signal.SIGINT else number
        for worker in workers:
            worker.process.send_signal(passed)

    for number in (signal.SIGINT, *heard(*END_SIGNALS)):
        signal.signal(number, pass_on)
    workers += [start(command, rank, addresses, folder) for rank in range(count)]
    failure = wait(workers, grace)
    for worker in workers:
        worker.stderr.close()
    if failure is None:
        return 0
    if failure.exit_code == EXIT_RESUME:
        print("the same command resumes the run", file=sys.stderr)
    return failure.exit_code


def free_ports(count: int) -> list[int]:
    """Ports of this machine that are not in use."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports


def start(command: Sequence[str], rank: int, addresses: Sequence[str], folder: Path) -> Worker:
    """Starts one worker. The terminal's Ctrl-C does not reach it: the launcher passes it on.

    Args:
        command: the program and its arguments.
        rank: the number of the worker, from 0.
        addresses: "host:port" of every worker.
        folder: where its stderr is written, to `worker-RANK.log`.
    """
    config = {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": rank}}
    environment = os.environ | {"TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": ""}
    log = folder / f"worker-{rank}.log"
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command,
            env=environment,
            stderr=stream,
            start_new_session=True,
            preexec_fn=_make_end_with_parent(),
        )
    return Worker(rank, process, log, open(log, "rb"))


def _make_end_with_parent() -> Callable[[], None] | None:
    """A function for a new process: it asks Linux for SIGTERM when the launcher ends, even by SIGKILL."""
    if sys.platform != "linux":
        return None
    libc, launcher = ctypes.CDLL(None, use_errno=True), os.getpid()

    def end_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != launcher:  # it ended before the call
            os._exit(EXIT_RESUME)

    return end_with_parent


def wait(workers: Sequence[Worker], grace: float) -> Failure | None:
    """Waits until all workers have ended. After the first failure the others have `grace` seconds, then are killed.

    Returns:
        The first failure, or None if every worker ended with exit code 0.
    """
    failure: Failure | None = None
    countdown: Countdown | None = None
    while True:
        running = [worker for worker in workers if worker.process.poll() is None]
        for worker in workers:
            worker.show_stderr()
        if failure is None and (failure := first_failure([worker.process.returncode for worker in workers])):
            countdown = Countdown(grace)
            if failure.code != EXIT_RESUME:  # a worker that stopped as it should has said so itself
                others = f"; the other workers have {grace:g} s to stop" if running else ""
                print(f"{failure}; its log is {workers[failure.rank].log}{others}", file=sys.stderr, flush=True)
        if not running:
            return failure
        if countdown and countdown.left() <= 0:
            for worker in running:
                worker.process.kill()
        time.sleep(_POLL_SECONDS)


def first_failure(codes: Sequence[int | None]) -> Failure | None:
    """The failure that caused the others, of workers that were found to have ended at the same time.

    A worker that loses another one ends with 75 ("resume me") or is aborted by TensorFlow. So an exit code of an error
    comes first, then a signal other than SIGABRT, then SIGABRT, then 75.

    Args:
        codes: the exit code of each worker by rank; negative: the signal that killed it; None: it still runs.

    Returns:
        The failure, or None if no worker has failed.
    """

    def is_consequence(failure: Failure) -> int:
        if failure.code > 0:
            return 3 if failure.code == EXIT_RESUME else 0
        return 2 if failure.code == -signal.SIGABRT else 1

    failures = [Failure(rank, code) for rank, code in enumerate(codes) if code]
    return min(failures, key=is_consequence, default=None)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run(make_parser(), launch, arguments)


if __name__ == "__main__":
    sys.exit(main())
