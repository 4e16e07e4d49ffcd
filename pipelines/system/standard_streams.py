"""Standard streams that cannot end the work: output that cannot be written is dropped."""

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


@contextmanager
def steady_streams(*, ends_with_reader: bool = False) -> Iterator["Losses"]:
    """Within it, no print raises an error, whatever stdin, stdout and stderr are.

    - A stream that is closed or None is replaced by /dev/null.
    - Text that cannot be written (the reader has ended, the disk is full, the terminal is gone) is dropped.
    - Characters that the stream's encoding lacks are written as escapes, such as \\xe9 and \\udcff.
    - A print inside a signal handler may interrupt another print.

    Args:
        ends_with_reader: printing to stdout raises `BrokenPipeError` after all if the program that reads it has ended.

    Yields:
        What stdout could not write.
    """
    _open_closed_descriptors()
    before = sys.stdin, sys.stdout, sys.stderr
    losses = Losses(ends_with_reader)
    with open(os.devnull, encoding="utf-8") as no_input, open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdin = no_input if _is_closed(sys.stdin) else sys.stdin
        sys.stdout = _steady(sys.stdout, losses) or nowhere
        sys.stderr = _steady(sys.stderr, Losses()) or nowhere
        try:
            yield losses
        finally:
            sys.stdin, sys.stdout, sys.stderr = before


def take_stdout() -> TextIO:
    """Keeps stdout for what this process answers to the one that started it.

    Whatever else writes to stdout from now on, Python's `print` or a library in C, writes to stderr.

    Returns:
        A stream to what was stdout until now.
    """
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


class Losses:
    """What a stream could not write.

    Args:
        ends_with_reader: see `steady_streams`.

    Attributes:
        error: the first error, or None.
    """

    def __init__(self, ends_with_reader: bool = False) -> None:
        self.error: OSError | None = None
        self._ends_with_reader = ends_with_reader

    def add(self, error: OSError) -> None:
        """Notes an error, or raises it."""
        self.error = self.error or error
        if self._ends_with_reader and isinstance(error, BrokenPipeError):
            raise error


class _Steady(io.RawIOBase):
    """Writes to a descriptor, which it does not close. It has no buffer, so nothing is left to fail at the exit."""

    def __init__(self, descriptor: int, losses: Losses) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._losses = losses

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # the program at the other end has made the pipe or terminal non-blocking
                with suppress(OSError, ValueError):
                    select.select([], [self._descriptor], [], 1.0)
            except OSError as error:
                self._losses.add(error)
                break
        return size


def _steady(stream: TextIO | None, losses: Losses) -> TextIO | None:
    """A stream with the same descriptor; None for a closed one. Streams without a descriptor (in notebooks) stay."""
    if stream is None or _is_closed(stream):
        return None
    with suppress(OSError, ValueError):
        stream.flush()
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    raw: Any = _Steady(descriptor, losses)  # not buffered, as in `python -u`
    return io.TextIOWrapper(raw, encoding, errors="backslashreplace", newline="\n", write_through=True)


def _is_closed(stream: TextIO | None) -> bool:
    return stream is None or getattr(stream, "closed", False)


def _open_closed_descriptors() -> None:
    """Opens /dev/null as 0, 1 or 2 where they are closed. Otherwise a data file could get the number, and C libraries
    would print into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)  # for worker processes
