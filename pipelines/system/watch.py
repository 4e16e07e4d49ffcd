"""A time limit for reads that may never return."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

from pipelines.errors import BlockedInterrupt

T = TypeVar("T")


_TICK = 0.25  # seconds
_COMPUTING = 0.1  # of a core: a process that uses more is not waiting for a read
_COMPUTING_COUNTS = 0.25
_GRACE = 3.0  # seconds that a call has to return after an interrupt


class Countdown:
    """Counts down seconds in which this process runs.

    A process may be suspended: by Ctrl-Z, SIGSTOP, a container that is paused, a batch system that shares the machine,
    or a machine that sleeps. The time between two looks at the clock counts only up to `tick`, so a pause of any length
    counts as at most one tick.

    Args:
        seconds: the time to count down.
        tick: the longest time between two calls of `left` while the process runs, in seconds.
        work: the seconds of CPU time that the process has used. Time in which it computes counts a quarter: it has not
            stopped. It may be opening a pipeline while other processes take most of the machine.

    Attributes:
        elapsed: the seconds so far.
    """

    def __init__(self, seconds: float, tick: float = _TICK, work: Callable[[], float] = lambda: 0.0) -> None:
        self.elapsed = 0.0
        self._seconds = seconds
        self._tick = tick
        self._work = work
        self._looked, self._worked = time.monotonic(), work()

    def left(self) -> float:
        """The seconds that are left; 0 or less at the end."""
        now, worked = time.monotonic(), self._work()
        passed = min(now - self._looked, self._tick)
        computes = worked - self._worked > _COMPUTING * passed
        self.elapsed += passed * (_COMPUTING_COUNTS if computes else 1)
        self._looked, self._worked = now, worked
        return self._seconds - self.elapsed


class NoAnswer(Exception):
    """A call took longer than its time limit."""


def within(seconds: float, act: Callable[[], T]) -> T:
    """Calls a function with a time limit.

    Args:
        seconds: the limit.
        act: the function. If it takes longer, it is left behind in a daemon thread.

    Returns:
        What `act` returns.

    Raises:
        NoAnswer: `act` takes longer.
        Exception: what `act` raises.
    """
    watch = Watch(seconds)
    try:
        return watch.call(act)
    finally:
        watch.close()


class Watch:
    """Runs calls that could block forever in a separate thread, and raises `NoAnswer` after a time limit.

    It is a daemon thread, so that a read that never returns does not keep the process alive. All calls share one
    thread, because TensorFlow keeps some memory for every thread that ever called it. `close` ends the thread. After
    `NoAnswer` the watch cannot be used any more.

    Args:
        seconds: see below.
        while_waiting: called a few times per second with the seconds that the call takes so far; may raise.

    Attributes:
        seconds: the time limit of each call (`math.inf` for none). Pauses of the process do not count, and
            time in which it computes counts a quarter; see `Countdown`.
    """

    def __init__(self, seconds: float, while_waiting: Callable[[float], None] = lambda _: None) -> None:
        self.seconds = seconds
        self._while_waiting = while_waiting
        self._asked: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=_serve, args=[self._asked], name="kimagenet-watch", daemon=True).start()

    def call(self, act: Callable[[], T]) -> T:
        """Returns or raises what `act` does.

        Raises:
            NoAnswer: it takes longer than the limit.
            BlockedInterrupt: it was interrupted and does not return.
        """
        job = _Job(act)
        self._asked.put(job)
        self._wait(job)
        if job.error is not None:
            try:
                raise job.error
            finally:
                del job  # the traceback would refer to itself, and keep the iterator until garbage collection
        return job.value

    def _wait(self, job: "_Job") -> None:
        countdown = Countdown(self.seconds, work=time.process_time)
        try:
            while (left := countdown.left()) > 0:
                if job.done.wait(min(left, _TICK)):
                    return
                self._while_waiting(countdown.elapsed)
        except KeyboardInterrupt as interrupt:
            if not job.done.wait(_GRACE):
                raise BlockedInterrupt(*interrupt.args) from None
            raise
        if not job.done.is_set():  # after a pause the answer may be there
            raise NoAnswer(f"no answer within {self.seconds:g} seconds")

    def iterate(self, iterator: Iterator[T]) -> Iterator[T]:
        """Yields what the iterator yields. Keep no reference to it: the thread deletes it, since that may block."""
        held = [iterator]
        del iterator
        try:
            while True:
                try:
                    value = self.call(lambda: next(held[0]))
                except StopIteration:
                    return
                yield value
                del value
        finally:
            self._asked.put(_Job(held.clear))

    def close(self) -> None:
        """Ends the thread after the call that it is running."""
        self._asked.put(None)

    __del__ = close


class _Job:
    """One call and its result. `done` stays set, so an interrupt at any moment loses nothing."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act: Callable[[], Any] | None = act
        self.value: Any = None
        self.error: BaseException | None = None
        self.done = threading.Event()


def _serve(asked: SimpleQueue[_Job | None]) -> None:
    while job := asked.get():
        try:
            assert job.act is not None
            job.value = job.act()
        except BaseException as error:  # raised in the thread that called
            job.error = error
        job.act = None
        job.done.set()
        del job
