"""Starts several workers of one training on this machine, on its CPU: a trial of what a cluster will do.

python -m tools.launch --workers 2 demo --output runs/two --batch-size 32
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from kimagenet.cli import Parser, positive_int, run

DESCRIPTION = """Starts several workers of `python -m kimagenet.train` on this machine's CPU, over loopback: a trial of
what a cluster will do. All that follows the flags is handed to each of them. If one ends with an error or is killed,
the others get --grace seconds to end by themselves. Ctrl-C and SIGTERM are passed on. The exit code is that of the
first worker that failed: 75 says that the same command again resumes the run."""


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("python -m tools.launch", "--workers N [MODEL] --output RUN [flags of train]", DESCRIPTION)
    parser.add_argument("--workers", type=positive_int, required=True, metavar="N", help="how many processes")
    parser.add_argument("--grace", type=float, default=60, metavar="S", help="seconds for the others to end (60)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="model and flags of kimagenet.train")
    return parser


def launch(flags: argparse.Namespace) -> int:
    """Starts the workers, waits for them; returns the exit code."""
    addresses = [f"localhost:{port}" for port in free_ports(flags.workers)]
    processes = [start(rank, addresses, flags.arguments) for rank in range(flags.workers)]

    def pass_on(number: int, _: object) -> None:
        for process in processes:
            process.send_signal(signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    return wait(processes, flags.grace)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports


def start(rank: int, addresses: list[str], arguments: list[str]) -> subprocess.Popen:
    """One worker; it does not hear the terminal's Ctrl-C, which is passed on instead."""
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
    environment = os.environ | {"TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "kimagenet.train", *arguments]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def wait(processes: list[subprocess.Popen], grace: float) -> int:
    """Until all have ended; after the first failure the others are ended once `grace` seconds are over."""
    code, deadline = 0, float("inf")
    while any(process.poll() is None for process in processes):
        failed = [(rank, p.returncode) for rank, p in enumerate(processes) if p.returncode not in (None, 0)]
        if failed and deadline == float("inf"):
            rank, code = failed[0]
            print(f"worker {rank} {_how(code)}; the others have {grace:.0f} s", file=sys.stderr, flush=True)
            deadline = time.monotonic() + grace
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    codes = [process.returncode for process in processes if process.returncode]
    code = code or next(iter(codes), 0)
    return 128 - code if code < 0 else code


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run(make_parser(), launch, arguments)


if __name__ == "__main__":
    sys.exit(main())
