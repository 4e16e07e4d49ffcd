"""Leaves a worker open whose job ends when it is asked to ("slow"), or never ("blocked")."""

import sys
import threading

from pipelines.system import worker as module
from pipelines.system.worker import Worker

module._EXIT_SECONDS = 1.0
wanted, begun = threading.Event(), threading.Event()


def job() -> None:
    begun.set()
    wanted.wait()
    print("the job has ended", flush=True)


worker = Worker("kimagenet-test", wanted.set if sys.argv[1] == "slow" else int)
worker.submit(job)
begun.wait()
