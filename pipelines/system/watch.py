"""A limit of time for reads that may never come back."""

import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class NoAnswer(Exception):
    """Nothing came within the time that was given."""


def within(seconds: float, act: Callable[[], T]) -> T:
    """What `act` returns or raises; `NoAnswer` if it takes longer. It is then left behind in a daemon thread."""
    watch = Watch(seconds)
    try:
        return watch.call(act)
    finally:
        watch.close()


class Watch:
    """Does what could block for ever in a thread of its own, and raises `NoAnswer` after some seconds.

    A daemon, so that a read which never returns does not keep the process. One thread for all that is watched, since
    TensorFlow keeps some memory for every thread that ever called it. `close` ends it; after `NoAnswer` it is of no
    use any more.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._asked: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=_serve, args=[self._asked], name="kimagenet-watch", daemon=True).start()

    def call(self, act: Callable[[], T]) -> T:
        """What `act` returns or raises."""
        answer: _Answer = SimpleQueue()
        self._asked.put((act, answer))
        try:
            value, error = answer.get(timeout=self.seconds)
        except Empty:
            raise NoAnswer(f"nothing for {self.seconds:g} seconds") from None
        if error is not None:
            try:
                raise error
            finally:
                del error  # or its traceback would lead to itself, and the iterator stay until the collector comes
        return value

    def iterate(self, iterator: Iterator[T]) -> Iterator[T]:
        """What the iterator gives. It has to be nobody else's: the thread lets go of it, since that may block, too."""
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
        """Lets the thread end, once it has answered."""
        self._asked.put(None)

    __del__ = close


_Answer = SimpleQueue[tuple[Any, BaseException | None]]
_Job = tuple[Callable[[], Any], _Answer]


def _serve(asked: SimpleQueue[_Job | None]) -> None:
    while job := asked.get():
        act, answer = job
        try:
            answer.put((act(), None))
        except BaseException as error:  # handed over to who has asked
            answer.put((None, error))
        del job, act, answer
