"""Reads bytes of a file from disks and networks that fail for a moment."""

import errno
import os
import time
from pathlib import Path

# Errors of a server that restarts, or of a network that is down for a moment.
TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EREMOTEIO, errno.ENOLINK})
PAUSES = (0.1, 0.4, 1.6, 6.4)  # seconds before each further try


def read_bytes(path: Path, offset: int, length: int) -> bytes:
    """Reads a part of a file. After a transient error it tries again, for 8.5 seconds in all.

    Args:
        path: the file.
        offset: the first byte.
        length: how many bytes.

    Raises:
        OSError: the file cannot be read, or ends too early. It has the file's name.
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
