"""A background thread that does jobs one after another, and does not keep a process from ending."""

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar
from weakref import finalize

T = TypeVar("T")

_EXIT_SECONDS = 10.0  # how long the interpreter's end waits for a job, in case a disk does not answer

_Job = tuple[Future[Any], Callable[[], Any]]


class Worker:
    """One daemon thread, started by the first job.

    An executor's threads are joined when the interpreter ends, however long they take.
    """

    def __init__(self, name: str, before_exit: Callable[[], object] = lambda: None) -> None:
        """Starts nothing yet.

        Args:
            name: the thread's name.
            before_exit: called at the interpreter's end, to shorten the job that is being done.
        """
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=_serve, args=[self._jobs], name=name, daemon=True)
        self._is_closed = False
        self._lock = threading.Lock()
        at_exit = partial(_end, self._jobs, self._thread, before_exit)
        atexit.register(at_exit)
        self._forget = finalize(self, _forget, at_exit, self._jobs)
        self._forget.atexit = False

    def submit(self, act: Callable[..., T], *arguments: Any) -> Future[T]:
        """Does `act(*arguments)` after the jobs before it. A closed worker does it at once, in the calling thread."""
        future: Future[T] = Future()
        job = future, partial(act, *arguments)
        with self._lock:
            is_closed = self._is_closed
            if not is_closed:
                if self._thread.ident is None:
                    self._thread.start()
                self._jobs.put(job)
        if is_closed:
            _do(job)
        return future

    def close(self, seconds: float | None = None) -> bool:
        """Waits until all jobs are done, or for so long. Returns whether they are done."""
        with self._lock:
            self._is_closed = True
        self._forget()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)
        return not self._thread.is_alive()


def _serve(jobs: SimpleQueue[_Job | None]) -> None:
    while job := jobs.get():
        _do(job)
        del job


def _do(job: _Job) -> None:
    future, act = job
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(act())
    except BaseException as error:  # for the caller that asks for the result
        future.set_exception(error)


def _forget(at_exit: Callable[[], object], jobs: SimpleQueue[_Job | None]) -> None:
    """Lets the thread end after its jobs."""
    atexit.unregister(at_exit)
    jobs.put(None)


def _end(jobs: SimpleQueue[_Job | None], thread: threading.Thread, before_exit: Callable[[], object]) -> None:
    before_exit()
    jobs.put(None)
    if thread.ident is not None:
        thread.join(_EXIT_SECONDS)
