"""Work spread over processes: one function, many tasks, results as they come."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from pipelines.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def cpu_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Yields `function(task)` for every task, in the order in which they end; with one worker in this process.

    `function` must be importable and its exceptions are raised here. After an exception or an interrupt, tasks
    that are running are finished and the others are dropped. Raises `UserError` if a worker is killed.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    # spawn, not fork: TensorFlow's threads in this process would not survive a fork.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ignore_interrupts)
    try:
        for future in as_completed([pool.submit(function, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool:
        raise UserError("a worker process was killed, out of memory perhaps: try again with fewer workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal; only the parent shall act on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
