"""How records are fetched: the kernel is asked to; where that does nothing, they are read."""

import os
from dataclasses import dataclass, replace
from enum import Enum

_PATIENCE = 2  # trials in a row that fetch nothing, before another way is taken


class Way(Enum):
    """A way to get bytes into memory."""

    ADVISE = "advise"  # the kernel fetches them, and the call returns at once
    READ = "read"  # they are read and thrown away
    NONE = "none"  # the file system keeps nothing in memory


@dataclass(frozen=True)
class Trial:
    """What is known about the way that is taken.

    Attributes:
        way: the way.
        is_proven: whether it has fetched something.
        failures: how often in a row it has fetched nothing.
    """

    way: Way = Way.ADVISE
    is_proven: bool = False
    failures: int = 0

    def after(self, *, has_fetched: bool) -> "Trial":
        """What is known after something was fetched that was not in memory, and was looked for later."""
        if has_fetched:
            return replace(self, is_proven=True, failures=0)
        if self.failures + 1 < _PATIENCE:
            return replace(self, failures=self.failures + 1)
        return Trial(Way.READ if self.way is Way.ADVISE else Way.NONE)


def advise(descriptor: int, first: int, length: int) -> None:
    """Asks the kernel to read a part of a file into memory. Raises `OSError`."""
    os.posix_fadvise(descriptor, first, length, os.POSIX_FADV_WILLNEED)


def read(descriptor: int, first: int, length: int) -> None:
    """Reads a part of a file, so that it is in memory. Raises `OSError`."""
    os.pread(descriptor, length, first)
