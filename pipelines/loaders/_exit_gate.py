"""Ends all reading through Python before the interpreter ends."""

import atexit
import time
from functools import cache
from threading import Lock

import tensorflow as tf

_EXIT_SECONDS = 10  # how long the interpreter's end waits for a read, in case a disk does not answer


class ExitGate:
    """Ends all reading before the interpreter ends.

    Without it, a script that leaves an iterator open in the middle of an epoch would never end: TensorFlow's thread,
    which calls Python, waits for the interpreter, and the interpreter, which destroys the iterator, for that thread.
    """

    def __init__(self) -> None:
        self._closed = tf.queue.FIFOQueue(1, tf.bool)  # a tf.Variable would belong to the strategy in scope
        self._passing = 0
        self._lock = Lock()
        atexit.register(self._close)

    def is_open(self) -> tf.Tensor:
        """bool scalar, in TensorFlow operations."""
        return tf.equal(self._closed.size(), 0)

    def __enter__(self) -> None:
        with self._lock:
            self._passing += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._passing -= 1

    def _close(self) -> None:
        self._closed.enqueue(True)
        deadline = time.monotonic() + _EXIT_SECONDS
        time.sleep(0.02)  # a thread that found the gate open enters meanwhile
        while self._passing and time.monotonic() < deadline:
            time.sleep(0.01)


@cache
def exit_gate() -> ExitGate:
    """The one gate of the process."""
    return ExitGate()
