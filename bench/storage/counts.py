"""Counts of read requests and bytes, as a disk and a slow view of a folder keep them."""

from dataclasses import dataclass
from pathlib import Path

_SECTOR = 512  # bytes, whatever the disk's own sectors are


@dataclass(frozen=True)
class Counts:
    """Reads since the disk or the view is there.

    Attributes:
        requests: read requests that were completed.
        num_bytes: bytes that were read.
    """

    requests: int
    num_bytes: int

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(self.requests - other.requests, self.num_bytes - other.num_bytes)


def read_counts(path: Path) -> Counts:
    """Reads the counts of a view (`.stats`) or of a disk (`/sys/dev/block/…/stat`)."""
    return parse_counts(path.read_text(encoding="ascii"))


def parse_counts(text: str) -> Counts:
    """Parses the counts.

    Args:
        text: "12 requests 3400 bytes" of a view, or the line of a disk, whose first fields are reads completed, reads
            merged and sectors read (the kernel's Documentation/block/stat.rst).

    Raises:
        ValueError: it is neither.
    """
    words = text.split()
    if len(words) == 4 and (words[1], words[3]) == ("requests", "bytes"):
        return Counts(int(words[0]), int(words[2]))
    if len(words) >= 11 and all(word.isdecimal() for word in words):
        return Counts(int(words[0]), int(words[2]) * _SECTOR)
    raise ValueError(f"not counts of reads: {text[:60]!r}")
