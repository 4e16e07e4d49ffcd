"""Output to what is no regular file: devices, FIFOs, and open streams like /dev/stdout."""

import errno
import logging
import os
import re
import shutil
import stat
import sys
import time
from pathlib import Path

from pipelines.errors import UserError

_log = logging.getLogger(__name__)
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|thread-self))/fd/(\d+)")
_MOST_LINKS = 40
_POLL = 0.1  # seconds between two looks for a FIFO's reader
_QUIET = 5.0  # seconds before a line says that a FIFO has no reader


def is_stream(path: Path) -> bool:
    """Whether content has to be written through a path, because replacing it would lose a device, FIFO or stream."""
    if _descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def write_through(source: Path, path: Path) -> None:
    """Copies a file into a stream.

    Raises:
        UserError: the reader of a FIFO ended.
        OSError: the stream cannot be written.
    """
    number = _descriptor(path)
    if number is None:
        descriptor = _open(path)
    else:
        sys.stdout.flush()
        sys.stderr.flush()
        descriptor = os.dup(number)  # not opened by its name, which would cut off a file behind a redirection
    try:
        with open(source, "rb") as stream, open(descriptor, "wb") as through:
            shutil.copyfileobj(stream, through)
    except BrokenPipeError:
        if number is not None:
            raise
        raise UserError("its reader ended before everything was written", path=path) from None


def _descriptor(path: Path) -> int | None:
    """The number of the open stream that a path means (1 for /dev/stdout), or None."""
    name = os.path.abspath(path)
    for _ in range(_MOST_LINKS):
        if found := _DESCRIPTOR.fullmatch(name):
            return int(found[1])
        try:
            name = os.path.normpath(os.path.join(os.path.dirname(name), os.readlink(name)))
        except OSError:  # not a link
            return None
    return None


def _open(path: Path) -> int:
    """Opens a device, or a FIFO as soon as it has a reader. A line says after some seconds that there is none."""
    started, is_said = time.monotonic(), False
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno != errno.ENXIO or not path.is_fifo():
                raise
            if not is_said and time.monotonic() - started > _QUIET:
                is_said = True
                _log.warning("%s: waiting for a process that reads this FIFO", path)
            time.sleep(_POLL)
            continue
        os.set_blocking(descriptor, True)
        return descriptor
