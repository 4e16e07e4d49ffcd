"""Spreads work over processes: one function, many tasks, results in the order in which they finish."""

import errno
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import TypeVar

from pipelines.errors import UserError
from pipelines.system.limits import core_count

Task = TypeVar("Task")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)
_NO_SEMAPHORES = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOSPC, errno.ENOSYS})


def cpu_count() -> int:
    """The number of cores that this process may use: by its affinity, and by the quota of its container."""
    return core_count()


def run_tasks(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Calls a function for every task.

    After an exception or an interrupt, the running tasks are finished and the others are dropped.

    Args:
        function: must be importable. Its exceptions are raised here.
        tasks: its arguments.
        workers: processes; with 1 or one task, or without /dev/shm, the work is done in this process.

    Yields:
        The results, in the order in which the tasks finish.

    Raises:
        UserError: a worker was killed.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    try:
        # spawn, not fork: the threads of TensorFlow in this process would not survive a fork.
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    except (OSError, ImportError) as error:  # its semaphores are files in /dev/shm
        if isinstance(error, OSError) and error.errno not in _NO_SEMAPHORES:
            raise
        reason = getattr(error, "strerror", None) or error
        _log.warning("/dev/shm: cannot be used (%s), and worker processes need it; working in this process", reason)
        yield from map(function, tasks)
        return
    try:
        for future in as_completed([pool.submit(function, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool:
        what = "a worker process was killed, perhaps because the machine ran out of memory"
        raise UserError(what, remedy="choose fewer workers", setting="workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C reaches every process of the terminal, but only the parent acts on it. Workers end with their parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this, the workers of a killed parent would wait for tasks forever."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
