"""A time limit for reads that may never return."""

import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


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
        seconds: the time limit of each call.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._asked: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=_serve, args=[self._asked], name="kimagenet-watch", daemon=True).start()

    def call(self, act: Callable[[], T]) -> T:
        """Returns or raises what `act` does; raises `NoAnswer` if it takes longer than the limit."""
        answer: _Answer = SimpleQueue()
        self._asked.put((act, answer))
        try:
            value, error = answer.get(timeout=self.seconds)
        except Empty:
            raise NoAnswer(f"no answer within {self.seconds:g} seconds") from None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback would refer to itself, and keep the iterator until garbage collection
        return value

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
