"""DALI index files, made and checked without DALI: one line "offset size" for each record of a shard."""

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.errors import UserError
from pipelines.files import write_atomic
from pipelines.records import FOOTER_BYTES, HEADER_BYTES, masked_crc

_INDEX_TEXT = re.compile(rb"(?:[0-9]{1,18} [0-9]{1,18}\n)+")


@dataclass(frozen=True)
class Index:
    """Where the records of one shard lie: byte `offsets` and framed `sizes`, int64 [N] each."""

    offsets: np.ndarray
    sizes: np.ndarray

    @property
    def num_records(self) -> int:
        """How many records the shard has."""
        return len(self.offsets)

    @property
    def end(self) -> int:
        """The byte after the last record."""
        return int(self.offsets[-1] + self.sizes[-1])

    def to_bytes(self) -> bytes:
        """The index file's text, byte for byte what DALI's `tfrecord2idx` writes."""
        pairs = zip(self.offsets.tolist(), self.sizes.tolist(), strict=True)
        return b"".join(b"%d %d\n" % pair for pair in pairs)


def index_path(shard: Path) -> Path:
    """The index of `train-00000-of-00008` is `train-00000-of-00008.idx`."""
    return shard.with_name(shard.name + ".idx")


def scan(shard: Path) -> Index:
    """Reads the record headers of a shard (12 bytes each, never a payload).

    Raises `UserError` naming the shard and the byte if a header is damaged or the last record is cut off.
    """
    offsets: list[int] = []
    position = 0
    descriptor = _open(shard)
    try:
        end = os.fstat(descriptor).st_size
        while position < end:
            header = os.pread(descriptor, HEADER_BYTES, position)
            if len(header) < HEADER_BYTES:
                raise _truncated(shard, position)
            length, crc = struct.unpack("<QI", header)
            if crc != masked_crc(header[:8]):
                raise UserError(f"{shard}: no TFRecord header at byte {position}; copy or build the shard again")
            if length > end - position - HEADER_BYTES - FOOTER_BYTES:
                raise _truncated(shard, position)
            offsets.append(position)
            position += HEADER_BYTES + length + FOOTER_BYTES
    finally:
        os.close(descriptor)
    if not offsets:
        raise UserError(f"{shard}: the shard is empty; copy or build it again")
    starts = np.array(offsets, np.int64)
    return Index(starts, np.diff(starts, append=position))


def write_index(shard: Path, index: Index) -> None:
    """Writes the shard's index file, whole or not at all."""
    write_atomic(index_path(shard), index.to_bytes())


def read_index(shard: Path) -> Index:
    """Reads a shard's index file and checks it against the shard's size.

    Raises `UserError`, naming file and remedy, if the index is missing, empty, no index, not contiguous, or
    does not end where the shard ends. DALI itself would take most of these silently as a smaller data set.
    """
    path = index_path(shard)
    remedy = f"run `python -m tools.build_index {shard.parent}`"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {remedy}") from None
    if not text:
        raise UserError(f"{path}: the index is empty; {remedy}")
    if not _INDEX_TEXT.fullmatch(text):
        raise UserError(f'{path}: not an index (lines of "offset size"); {remedy}')
    table = np.array(text.split(), np.int64).reshape(-1, 2)
    index = Index(table[:, 0], table[:, 1])
    ends = index.offsets + index.sizes
    if index.offsets[0] != 0 or np.any(index.offsets[1:] != ends[:-1]):
        raise UserError(f"{path}: the index skips or repeats bytes of the shard; {remedy}")
    try:
        shard_bytes = shard.stat().st_size
    except OSError as error:
        raise UserError(f"{shard}: {error.strerror}; copy or build the shard again") from None
    if index.end != shard_bytes:
        raise UserError(
            f"{path}: the index covers {index.end:,} bytes, the shard has {shard_bytes:,}: "
            f"the index is stale ({remedy}) or the shard was cut off (copy or build it again)"
        )
    return index


def _open(shard: Path) -> int:
    try:
        return os.open(shard, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{shard}: {error.strerror}") from None


def _truncated(shard: Path, position: int) -> UserError:
    return UserError(f"{shard}: the record at byte {position} is cut off; copy or build the shard again")
