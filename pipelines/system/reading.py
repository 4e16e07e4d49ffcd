"""Reads bytes of files: again after errors that last a moment, and what comes next while the caller works."""

import errno
import mmap
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Errors of a server that restarts, or of a network that is down for a moment.
TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EREMOTEIO, errno.ENOLINK})
PAUSES = (0.1, 0.4, 1.6, 6.4)  # seconds before each further try
# Bytes of one hint. The kernel reads no more for it than the file system's largest read-ahead, which is usually this
# much, and leaves out the rest without an error.
_HINT = 128 << 10


class NotRegular(OSError):
    """A device, a FIFO or a socket in the place of a file."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(errno.EINVAL, "not a regular file", str(path))

    def __reduce__(self) -> tuple[type["NotRegular"], tuple[str]]:
        return type(self), (self.filename,)


def read_bytes(path: Path, offset: int, length: int) -> bytes:
    """Reads a part of a file. After a transient error it tries again, for 8.5 seconds in all.

    Args:
        path: the file.
        offset: the first byte.
        length: how many bytes.

    Raises:
        OSError: the file cannot be read, or ends too early. It has the file's name.
    """

    def read() -> bytes:
        with FileReader(path) as file:
            data = file.read(offset, length)
        if missing := length - len(data):
            what = f"ends at byte {offset + len(data):,}, {missing:,} bytes too early"
            raise OSError(errno.ENODATA, what, str(path))
        return data

    return _with_retries(read)


def regular(path: str | Path, flags: int) -> int:
    """An `opener` for `open` that refuses what is no regular file. Opening a FIFO would wait for a process that writes.

    Raises:
        OSError: the file cannot be opened; `NotRegular`: it is no regular file. It has the file's name.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise NotRegular(path)


def map_file(path: Path) -> memoryview:
    """A regular file as memory: of a part that is looked at, only its pages are read, without read-ahead.

    Raises:
        OSError: the file cannot be opened, or is no regular file.
        ValueError: it is empty.
    """
    with open(path, "rb", opener=regular) as stream:
        # Not closed here: a traceback may still have a view of it, and then mmap refuses to close.
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)
    return memoryview(mapped)


def read_file(path: Path) -> bytes:
    """Reads a whole regular file, and tries again as `read_bytes` does.

    Every small file that belongs to a data set, a source or a run is read by this function. Of a long file the kernel
    reads many pieces at once.

    Raises:
        OSError: the file cannot be read, or is no regular file. It has the file's name.
    """

    def read() -> bytes:
        with FileReader(path, opener=regular) as file:
            if file.size > _HINT:
                file.will_need(file.size)
            return file.read(0, file.size)

    return _with_retries(read)


def ask_for(descriptor: int, offset: int, length: int) -> None:
    """Tells the kernel that a range of a file will be read. It begins to fetch the range and does not wait."""
    for start in range(offset, offset + length, _HINT):
        os.posix_fadvise(descriptor, start, min(_HINT, offset + length - start), os.POSIX_FADV_WILLNEED)


class FileReader:
    """An open file. As a context manager it is closed at the end.

    Args:
        path: the file.
        ahead: for a file that is read from its beginning to its end: so many bytes behind the part that is read are
            read by the kernel meanwhile.
        opener: opens it.

    Attributes:
        path: see above.
        size: the file's bytes when it was opened.

    Raises:
        OSError: the file cannot be opened. It has the file's name.
    """

    def __init__(self, path: Path, ahead: int = 0, opener: Callable[[Path, int], int] = os.open) -> None:
        self.path = path
        self._ahead = ahead
        self._hinted = 0  # the kernel reads the file up to this byte
        self._descriptor = opener(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Reads a part of the file, which is shorter at its end. Raises `OSError` with the file's name."""
        if self._ahead:
            self.will_need(offset + length + self._ahead)
        parts = []
        try:
            while length > 0 and (part := os.pread(self._descriptor, length, offset)):
                parts.append(part)
                offset += len(part)
                length -= len(part)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def will_need(self, end: int) -> None:
        """Asks the kernel to read the file up to this byte, and does not wait. A system that cannot do it does not."""
        until = -(-min(end, self.size) // _HINT) * _HINT
        with suppress(OSError):
            if self._hinted < until:
                ask_for(self._descriptor, self._hinted, until - self._hinted)
                self._hinted = until

    def __enter__(self) -> "FileReader":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _with_retries(read: Callable[[], bytes]) -> bytes:
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        time.sleep(pause)
    return read()
