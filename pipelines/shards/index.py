"""DALI index files, written and checked without DALI: one line "offset size" for each record of a shard."""

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from pipelines.errors import UserError, reason
from pipelines.shards.records import FOOTER_BYTES, HEADER_BYTES, masked_crc
from pipelines.shards.remedies import REPLACE_SHARD, build_index
from pipelines.system.files import write_own
from pipelines.system.reading import FileReader, NotRegular, read_file

_NO_HEADER, _CUT_OFF = "its header is damaged", "it is cut off"
_PIECE = 1 << 22  # bytes searched at a time
_INDEX_LINE = re.compile(rb"^([0-9]{1,18}) ([0-9]{1,18})$", re.MULTILINE)
_INDEX_TEXT = re.compile(rb"(?:[0-9]{1,18} [0-9]{1,18}\n)+")


@dataclass(frozen=True)
class Index:
    """Where the records of one shard are.

    Attributes:
        offsets: int64 [N], the first byte of each record.
        sizes: int64 [N], its framed length in bytes.
    """

    offsets: np.ndarray
    sizes: np.ndarray

    @property
    def num_records(self) -> int:
        """The number of records in the shard."""
        return len(self.offsets)

    @property
    def end(self) -> int:
        """The byte after the last record."""
        return int(self.offsets[-1] + self.sizes[-1])

    def to_bytes(self) -> bytes:
        """The text of the index file, byte for byte as DALI's `tfrecord2idx` writes it."""
        return b"".join(self.lines())

    def lines(self) -> list[bytes]:
        """The lines of `to_bytes`."""
        return [b"%d %d\n" % pair for pair in self.pairs()]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Offset and framed size of each record."""
        return zip(self.offsets.tolist(), self.sizes.tolist(), strict=True)


def index_path(shard: Path) -> Path:
    """The path of a shard's index: train-00000-of-00008.idx for train-00000-of-00008."""
    return shard.with_name(shard.name + ".idx")


def scan(shard: Path) -> Index:
    """Reads the record headers of a shard, 12 bytes each, and no payload.

    Raises:
        UserError: the shard is missing or empty, a header is damaged, or the last record is cut off.
    """
    with open_shard(shard) as file:
        starts: list[int] = []
        for start, problem in _headers(file):
            if problem:
                raise UserError(f"the record at byte {start}: {problem}", path=shard, remedy=REPLACE_SHARD)
            starts.append(start)
        return _index_of(starts, file.size)


def walk(file: FileReader, margin: int = 0) -> Iterator[tuple[int, int, str]]:
    """Finds the records of a shard that may be damaged, one after the other.

    After a damaged header the next whole one is searched. The lines of the shard's index separate the records between
    the two if these lines are whole; else these records count as one.

    Args:
        file: the shard.
        margin: so many bytes before and after each header are read with it, in the same request.

    Yields:
        The first byte of a record, its framed length in bytes, and what is wrong with its header, "" if nothing.
    """
    lines: dict[int, int] | None = None
    for (start, problem), (end, _) in pairwise(chain(_headers(file, margin), [(file.size, "")])):
        if not problem:
            yield start, end - start, ""
            continue
        lines = _index_lines(file.path) if lines is None else lines
        for part, part_end in pairwise([*_chain(lines, start, end), end]):
            yield part, part_end - part, problem


def misplaced(shard: Path, index: Index) -> tuple[int, int] | None:
    """Compares an index with the headers of its shard. Parts of the shard with a damaged header are left out.

    Args:
        shard: the shard.
        index: what is known of its records.

    Returns:
        The first record that has another first byte or another size in the shard than in the index, and the first byte
        of the record that the shard has there. None if the index is right.

    Raises:
        UserError: the shard is missing or empty.
    """
    with open_shard(shard) as file:
        headers = list(_headers(file))
        real = _index_of([start for start, _ in headers], file.size)
    found = np.searchsorted(real.offsets, index.offsets, side="right") - 1
    is_whole = np.array([not problem for _, problem in headers])[found]
    wrong = is_whole & ((real.offsets[found] != index.offsets) | (real.sizes[found] != index.sizes))
    if not wrong.any():
        return None
    first = int(wrong.argmax())
    return first, int(real.offsets[found[first]])


def _index_lines(shard: Path) -> dict[int, int]:
    """Offset → size for each whole line of an index that may be damaged or missing."""
    try:
        text = read_file(index_path(shard))
    except OSError:
        return {}
    return {int(offset): int(size) for offset, size in _INDEX_LINE.findall(text)}


def _chain(lines: dict[int, int], start: int, end: int) -> list[int]:
    """The records from `start` to `end` if the lines form a chain from one to the other; else one record."""
    starts, position = [], start
    while position < end and (size := lines.get(position, 0)):
        starts.append(position)
        position += size
    return starts if position == end else [start]


def write_index(shard: Path, index: Index) -> None:
    """Writes the shard's index file, whole or not at all."""
    write_own(index_path(shard), index.to_bytes())


def read_index(shard: Path, shard_bytes: int | None = None) -> Index:
    """Reads a shard's index file and checks it against the shard's size.

    Args:
        shard: the shard.
        shard_bytes: its size, if the caller has just asked for it.

    Raises:
        UserError: the index is missing, empty, not an index, not contiguous, or does not end where the shard ends.
            DALI itself takes most of these for a smaller data set, without a warning.
    """
    path = index_path(shard)
    remedy = f"run {build_index(shard.parent)}"
    try:
        text = read_file(path)
    except OSError as error:
        remedy = f"remove it and {remedy}" if isinstance(error, NotRegular) else remedy
        raise UserError(reason(error), path=path, remedy=remedy) from None
    if not text:
        raise UserError("the index is empty", path=path, remedy=remedy)
    if not _INDEX_TEXT.fullmatch(text):
        raise UserError('not an index (lines of "offset size")', path=path, remedy=remedy)
    table = np.fromstring(text, np.int64, sep=" ").reshape(-1, 2)  # four times as fast as splitting the text
    index = Index(table[:, 0], table[:, 1])
    ends = index.offsets + index.sizes
    if index.offsets[0] != 0 or np.any(index.offsets[1:] != ends[:-1]):
        raise UserError("the index skips or repeats bytes of the shard", path=path, remedy=remedy)
    try:
        shard_bytes = os.stat(shard).st_size if shard_bytes is None else shard_bytes
    except OSError as error:
        raise UserError(reason(error), path=shard, remedy=REPLACE_SHARD) from None
    if index.end != shard_bytes:
        what = f"the index covers {index.end:,} bytes, the shard has {shard_bytes:,}"
        remedy = f"{remedy} if the index is stale, or {REPLACE_SHARD} if the shard was cut off"
        raise UserError(what, path=path, remedy=remedy)
    return index


def open_shard(shard: Path, ahead: int = 0) -> FileReader:
    """Opens a shard; `ahead` as in `FileReader`. Raises `UserError` if it cannot be opened or is empty."""
    try:
        file = FileReader(shard, ahead)
    except OSError as error:
        raise UserError(reason(error), path=shard, remedy=REPLACE_SHARD) from None
    if not file.size:
        with file:
            raise UserError("the shard is empty", path=shard, remedy="copy or build it again")
    return file


def _index_of(starts: list[int], end: int) -> Index:
    offsets = np.array(starts, np.int64)
    return Index(offsets, np.diff(offsets, append=end))


def _headers(file: FileReader, margin: int = 0) -> Iterator[tuple[int, str]]:
    """The first byte of each record and what is wrong with its header. After a damaged one the next is searched."""
    position = 0
    while position < file.size:
        before = min(margin, position)
        data = file.read(position - before, before + HEADER_BYTES + margin)
        length, problem = _read_header(data[before : before + HEADER_BYTES], file.size - position)
        yield position, problem
        if problem:
            position = _next_header(file, position + 1)
        else:
            position += HEADER_BYTES + length + FOOTER_BYTES


def _read_header(header: bytes, room: int) -> tuple[int, str]:
    """The length of a record's data, and what is wrong with it. `room` bytes are left in the shard."""
    if len(header) < HEADER_BYTES:
        return 0, _CUT_OFF
    length, crc = struct.unpack("<QI", header)
    if crc != masked_crc(header[:8]):
        return 0, _NO_HEADER
    return (length, "") if length <= room - HEADER_BYTES - FOOTER_BYTES else (0, _CUT_OFF)


def _next_header(file: FileReader, position: int) -> int:
    """The first byte from `position` on where a length and its CRC agree, or the end of the file."""
    while position < file.size:
        data = file.read(position, _PIECE + HEADER_BYTES - 1)
        # No record has 4 GiB, so the upper half of its length is four zeros. CRCs are computed only there.
        zero = np.frombuffer(data, np.uint8)[4 : len(data) - 4] == 0
        for start in np.flatnonzero(zero[:-3] & zero[1:-2] & zero[2:-1] & zero[3:]).tolist():
            length, problem = _read_header(data[start : start + HEADER_BYTES], file.size - position - start)
            if length and not problem:
                return position + start
        position += _PIECE
    return file.size
