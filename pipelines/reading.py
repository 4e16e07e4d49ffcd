"""Bytes of a file on disks and networks that fail: now and then, for good, or by giving no answer at all."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# What a server that is being restarted, or a link that is down for a moment, gives.
TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EREMOTEIO, errno.ENOLINK})
PAUSES = (0.1, 0.4, 1.6, 6.4)  # seconds before each further try


def read_bytes(path: Path, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` on. Transient errors are tried again, for 8.5 seconds in all.

    Raises `OSError` with the file's name if it cannot be read or ends too early.
    """
    for pause in PAUSES:
        try:
            return _read_once(path, offset, length)
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        time.sleep(pause)
    return _read_once(path, offset, length)


def _read_once(path: Path, offset: int, length: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            parts = []
            while length > 0 and (part := os.pread(descriptor, length, offset)):
                parts.append(part)
                offset += len(part)
                length -= len(part)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    if length:
        raise OSError(errno.ENODATA, f"ends at byte {offset:,}, {length:,} bytes too early", str(path))
    return b"".join(parts)


class NoAnswer(Exception):
    """Nothing came within the time that was given."""


def within(seconds: float, act: Callable[[], T]) -> T:
    """What `act` returns or raises; `NoAnswer` if it takes longer. It is then left behind in a daemon thread."""
    return next(Watched(iter([None]), seconds, lambda _: act()))


class Watched(Iterator[T], Generic[T]):
    """An iterator whose `next` raises `NoAnswer` after some seconds, where the bare one could block for ever.

    A thread of its own asks the iterator; a daemon, so that a read which never returns does not keep the process.
    `close` ends it; after `NoAnswer` the iterator is of no use any more.
    """

    def __init__(self, iterator: Iterator[Any], seconds: float, use: Callable[[Any], T] = lambda value: value) -> None:
        self._seconds = seconds
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._given: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        arguments = iterator, use, self._asked, self._given
        threading.Thread(target=_serve, args=arguments, name="kimagenet-next", daemon=True).start()

    def __next__(self) -> T:
        self._asked.put(True)
        try:
            value, error = self._given.get(timeout=self._seconds)
        except Empty:
            raise NoAnswer(f"nothing for {self._seconds:g} seconds") from None
        if error is not None:
            try:
                raise error
            finally:
                del error  # or its traceback would lead to itself, and the iterator stay until the collector comes
        return value  # type: ignore[return-value]

    def close(self) -> None:
        """Lets the thread end, once the iterator has answered."""
        self._asked.put(False)

    __del__ = close


def _serve(
    iterator: Iterator[Any], use: Callable[[Any], Any], asked: "SimpleQueue[bool]", given: "SimpleQueue[Any]"
) -> None:
    while asked.get():
        try:
            given.put((use(next(iterator)), None))
        except BaseException as error:  # handed over to who has asked
            given.put((None, error))
            del error
