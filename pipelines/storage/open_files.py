"""Descriptors that stay open, because opening a file may take a round trip to a server."""

import os
import resource
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple
from weakref import finalize

from pipelines.storage.spans import PAGE

_USUAL_READ_AHEAD = 128 << 10  # bytes, Linux' default
_SHARE_OF_LIMIT = 4
_DEVICES = Path("/sys/class/bdi")


class OpenFile(NamedTuple):
    """An open file.

    Attributes:
        descriptor: for reading.
        largest: the most bytes that one call fetches: the kernel leaves out what is over the file's read-ahead.
    """

    descriptor: int
    largest: int


class OpenFiles:
    """The files that were used last, for one thread: an old one is closed when another one is opened."""

    def __init__(self, most: int, advice: int = os.POSIX_FADV_SEQUENTIAL) -> None:
        """Opens nothing yet.

        Args:
            most: how many files may be open.
            advice: what the kernel is told of each file. SEQUENTIAL doubles its read-ahead, which halves the requests;
                RANDOM keeps the kernel from reading more than it is asked for.
        """
        self._most = most
        self._advice = advice
        self._open: OrderedDict[Path, OpenFile] = OrderedDict()
        finalize(self, _close, self._open).atexit = False

    def __len__(self) -> int:
        return len(self._open)

    def open(self, path: Path) -> OpenFile:
        """The open file. Raises `OSError` if it cannot be opened."""
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        while len(self._open) >= self._most:
            os.close(self._open.popitem(last=False)[1].descriptor)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # so that a FIFO does not block
        self._open[path] = OpenFile(descriptor, self._advised(descriptor))
        return self._open[path]

    def _advised(self, descriptor: int) -> int:
        """Tells the kernel how a file is read. Returns the most bytes that it then fetches in one call."""
        try:
            os.posix_fadvise(descriptor, 0, 0, self._advice)
            size = read_ahead(os.fstat(descriptor).st_dev)
        except OSError:  # for a file that takes no advice
            return _USUAL_READ_AHEAD
        return 2 * size if self._advice == os.POSIX_FADV_SEQUENTIAL else size

    def close(self) -> None:
        """Closes all files."""
        _close(self._open)


def most_files(shards: int, loaders: int) -> int:
    """How many files may stay open: a quarter of what the system allows a process.

    Args:
        shards: how many there are.
        loaders: how many there may be in this process.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return shards if limit == resource.RLIM_INFINITY else max(1, min(shards, limit // _SHARE_OF_LIMIT // loaders))


def read_ahead(device: int, devices: Path = _DEVICES) -> int:
    """The read-ahead of a device in bytes, a multiple of `PAGE`.

    Args:
        device: its number, as in `st_dev`.
        devices: the folder in which Linux describes them.
    """
    try:
        text = (devices / f"{os.major(device)}:{os.minor(device)}" / "read_ahead_kb").read_text()
        size = int(text) << 10
    except (OSError, ValueError):
        size = 0
    return size // PAGE * PAGE or _USUAL_READ_AHEAD


def _close(files: OrderedDict[Path, OpenFile]) -> None:
    while files:
        os.close(files.popitem()[1].descriptor)
