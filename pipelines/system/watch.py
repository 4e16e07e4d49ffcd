"""A time limit for reads that may never return."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from pipelines.errors import BlockedInterrupt

T = TypeVar("T")


_TICK = 0.25  # seconds
_GRACE = 3.0  # seconds that a call has to return after an interrupt


class Countdown:
    """Counts down seconds in which this process runs.

    A process may be suspended: by Ctrl-Z, SIGSTOP, a container that is paused, a batch system that shares the machine,
    or a machine that sleeps. The time between two looks at the clock counts only up to `tick`, so a pause of any length
    counts as at most one tick.

    Args:
        seconds: the time to count down.
        tick: the longest time between two calls of `left` while the process runs, in seconds.

    Attributes:
        elapsed: the seconds so far.
    """

    def __init__(self, seconds: float, tick: float = _TICK) -> None:
        self.elapsed = 0.0
        self._seconds = seconds
        self._tick = tick
        self._looked = time.monotonic()

    def left(self) -> float:
        """The seconds that are left; 0 or less at the end."""
        now = time.monotonic()
        self.elapsed += min(now - self._looked, self._tick)
        self._looked = now
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
        seconds: the time limit of each call (`math.inf` for none). Pauses of the process do not count; see `Countdown`.
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
        answer: _Answer = SimpleQueue()
        self._asked.put((act, answer))
        value, error = self._wait(answer)
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback would refer to itself, and keep the iterator until garbage collection
        return value

    def _wait(self, answer: "_Answer") -> tuple[Any, BaseException | None]:
        countdown = Countdown(self.seconds)
        try:
            while (left := countdown.left()) > 0:
                with suppress(Empty):
                    return answer.get(timeout=min(left, _TICK))
                self._while_waiting(countdown.elapsed)
        except KeyboardInterrupt as interrupt:
            try:
                answer.get(timeout=_GRACE)
            except Empty:
                raise BlockedInterrupt(*interrupt.args) from None
            raise
        with suppress(Empty):  # after a pause the answer may be there
            return answer.get_nowait()
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
            self._asked.put((held.clear, SimpleQueue()))

    def close(self) -> None:
        """Ends the thread after the call that it is running."""
        self._asked.put(None)

    __del__ = close


_Answer = SimpleQueue[tuple[Any, BaseException | None]]
_Job = tuple[Callable[[], Any], _Answer]


def _serve(asked: SimpleQueue[_Job | None]) -> None:
    while job := asked.get():
        act, answer = job
        try:
            answer.put((act(), None))
        except BaseException as error:  # raised in the thread that called
            answer.put((None, error))
        del job, act, answer
