"""A time limit for reads that may never return."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


_TICK = 0.25  # seconds


class Countdown:
    """Counts down seconds in which this process runs.

    A process may be suspended: by Ctrl-Z, SIGSTOP, a container that is paused, a batch system that shares the machine,
    or a machine that sleeps. The time between two looks at the clock counts only up to `tick`, so a pause of any length
    counts as at most one tick.

    Args:
        seconds: the time to count down.
        tick: the longest time between two calls of `left` while the process runs, in seconds.
    """

    def __init__(self, seconds: float, tick: float = _TICK) -> None:
        self._left = seconds
        self._tick = tick
        self._looked = time.monotonic()

    def left(self) -> float:
        """The seconds that are left; 0 or less at the end."""
        now = time.monotonic()
        self._left -= min(now - self._looked, self._tick)
        self._looked = now
        return self._left


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

    Attributes:
        seconds: the time limit of each call, without time in which the process is suspended; see `Countdown`.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._asked: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=_serve, args=[self._asked], name="kimagenet-watch", daemon=True).start()

    def call(self, act: Callable[[], T]) -> T:
        """Returns or raises what `act` does; raises `NoAnswer` if it takes longer than the limit."""
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
        while (left := countdown.left()) > 0:
            with suppress(Empty):
                return answer.get(timeout=min(left, _TICK))
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
