"""A file that grows entry by entry, for logs: an entry is there as a whole or not yet."""

import logging
import os
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)


class LogFile:
    """Appends entries. What the disk has no room for waits in memory for the next one; a warning says so, once.

    `header` stands before the first entry of a file that is new or was cut back to nothing.
    """

    def __init__(self, path: Path, header: bytes = b"") -> None:
        self._path = path
        self._header = header
        self._waiting = b""
        self._has_failed = False

    def append(self, entry: bytes) -> None:
        """Appends one entry; raises nothing if it cannot be written."""
        self._waiting += entry
        size = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            size = self._path.stat().st_size if self._path.exists() else 0
            with open(self._path, "ab") as stream:
                stream.write(self._waiting if size else self._header + self._waiting)
        except OSError as error:
            if size is not None:
                with suppress(OSError):
                    os.truncate(self._path, size)  # a part of it may be there
            if not self._has_failed:
                reason = error.strerror or error
                logger.warning("%s: not written (%s); its lines wait in memory, training goes on", self._path, reason)
            self._has_failed = True
            return
        self._waiting = b""
        self._has_failed = False
