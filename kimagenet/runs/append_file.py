"""A file that grows entry by entry, for logs: each entry is written completely or not at all."""

import logging
import os
from contextlib import suppress
from pathlib import Path

from pipelines.errors import reason

_log = logging.getLogger(__name__)


class AppendFile:
    """Appends entries to a file.

    Entries that a full disk has no room for wait in memory and are written with a later one; one warning says so.

    Args:
        path: the file; it and its folder are created with the first entry.
        header: written before the first entry of an empty file.
    """

    def __init__(self, path: Path, header: bytes = b"") -> None:
        self._path = path
        self._header = header
        self._waiting = b""
        self._has_failed = False

    def append(self, entry: bytes) -> None:
        """Appends an entry. Does not raise if it cannot be written."""
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
                    os.truncate(self._path, size)  # removes what was written of it
            if not self._has_failed:
                what = "%s: not written (%s); its lines wait in memory, training continues"
                _log.warning(what, self._path, reason(error))
            self._has_failed = True
            return
        self._waiting = b""
        self._has_failed = False
