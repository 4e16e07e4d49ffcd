"""Reads what the records of a shard say, for its index and for dataset.json, in a worker process.

Only the start of each record is read: a shard is mapped into memory, and the pages with pixels are never touched. A
header says only where the next one is, so a shard is one long chain of requests; many shards are read at once.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from pipelines.building.class_names import ClassNames, class_names, second_name
from pipelines.building.formats import describe
from pipelines.building.image_head import read_image_head
from pipelines.errors import UserError, reason
from pipelines.shards import records, remedies
from pipelines.shards.dataset import USUAL_FEATURES, Features, ShardInfo
from pipelines.shards.index import Index, open_shard, walk, write_index
from pipelines.system.ahead import read_ahead
from pipelines.system.reading import map_file

MAX_LABEL = 2**24  # a larger number is a wrong feature, not a label
NO_LABEL = -1

_CHUNK = 4 << 20  # bytes of a shard that are read at once for its checksum
_READERS = 32  # shards whose headers a process reads at once
_MARGIN = 2048  # bytes around a header: the last features of one record, the first ones and the JPEG header of the next

Numbers = frozenset[int]  # record numbers in their shard


@dataclass(frozen=True)
class ScanTask:
    """One shard to index.

    Attributes:
        path: the shard.
        damaged: records to quarantine.
        known: its entry in dataset.json, kept if the shard has the same number of records and bytes.
        quarantined: its records in quarantine, kept in the same case.
        features: the names of the records' features.
        only_plain: quarantine also the records that the builder would encode again.
        checksum: compute the CRC-32C of the shard, for which all of it is read.
    """

    path: Path
    damaged: Numbers
    known: ShardInfo | None = None
    quarantined: Numbers = frozenset()
    features: Features = USUAL_FEATURES
    only_plain: bool = False
    checksum: bool = False


@dataclass(frozen=True)
class ShardScan:
    """What the records of one shard say.

    Attributes:
        info: the shard's entry for dataset.json.
        left_out: records in quarantine.
        sizes: int32 [N, 2], height and width in pixels; 1 × 1 for records in quarantine whose size cannot be read.
        labels: int64 [N]; NO_LABEL for records in quarantine.
        names: label -> the names of its class.
        wrong_sizes: for each record whose features have another size than its image, what they say.
        peculiar: record -> why the builder would encode it again, such as "PNG"; without those in quarantine before.
    """

    info: ShardInfo
    left_out: Numbers
    sizes: np.ndarray
    labels: np.ndarray
    names: dict[int, ClassNames]
    wrong_sizes: list[str]
    peculiar: dict[int, str]


def scan_shards(tasks: Sequence[ScanTask]) -> dict[str, ShardScan]:
    """Reads the starts of the records of some shards and writes their indexes.

    Args:
        tasks: the shards.

    Returns:
        What their records say, by the names of the shards.

    Raises:
        UserError: a record cannot be read and is not in quarantine, or class names contradict each other.
        OSError: a file cannot be read or written.
    """
    found = {}
    with closing(read_ahead(_scan_shard, tasks, _READERS)) as scans:
        for task, (scan, index) in zip(tasks, scans, strict=True):
            write_index(task.path, index)  # not in a thread that nobody waits for: it would leave half a file
            found[scan.info.file] = scan
    return found


class _Head(NamedTuple):
    """What the start of a record says.

    Its label, (height, width) of its image, the same by its features, its names, and why it would be encoded again.
    """

    label: int
    size: tuple[int, int]
    stored: tuple[int, int] | None
    names: ClassNames
    peculiarity: str


def _scan_shard(task: ScanTask) -> tuple[ShardScan, Index]:
    """Reads the start of each record of a shard."""
    path = task.path
    check_framing(path)
    index, heads = _read_heads(path, task.features)
    info = ShardInfo(file=path.name, records=index.num_records, bytes=index.end)
    left_out = task.damaged
    if task.known and (task.known.records, task.known.bytes) == (info.records, info.bytes):
        info, left_out = task.known, left_out | task.quarantined
    if task.checksum:
        info = info.model_copy(update={"crc32c": _checksum(path)})
    sizes = np.ones((index.num_records, 2), np.int32)
    labels = np.full(index.num_records, NO_LABEL, np.int64)
    wrong_sizes: list[str] = []
    peculiar: dict[int, str] = {}
    first: dict[int, tuple[int, ClassNames]] = {}  # label -> the first record that has it, and its names
    for number, head in enumerate(heads):
        if isinstance(head, _Head):
            sizes[number] = head.size
        if number in left_out:
            continue
        if isinstance(head, str):
            what = f"record {number} at byte {index.offsets[number]}: {head}"
            raise UserError(what, path=path, remedy=_remedy(path.parent))
        if head.peculiarity:
            peculiar[number] = head.peculiarity
            if task.only_plain:
                continue
        labels[number] = head.label
        record, known_names = first.get(head.label, (number, head.names))
        if head.names.contradicts(known_names):
            what = second_name(head.label, (record, known_names), (number, head.names))
            raise UserError(what, path=path, remedy="write the shard again with one name for each label")
        first[head.label] = record, known_names.filled(head.names)
        if head.stored and head.stored != head.size:
            wrong_sizes.append(wrong_size(number, head.stored, head.size))
    named = {label: names for label, (_, names) in first.items()}
    if task.only_plain:
        left_out = left_out | peculiar.keys()
    return ShardScan(info, left_out, sizes, labels, named, wrong_sizes, peculiar), index


def _read_heads(path: Path, features: Features) -> tuple[Index, list[_Head | str]]:
    """Finds the records of a shard. Of each what its start says, or what is wrong with it."""
    places: list[tuple[int, int]] = []
    heads: list[_Head | str] = []
    with open_shard(path) as file:
        shard = map_file(path)
        for offset, size, problem in walk(file, _MARGIN):
            places.append((offset, size))
            try:
                if problem:
                    raise ValueError(problem)
                body = shard[offset + records.HEADER_BYTES : offset + size - records.FOOTER_BYTES]
                heads.append(_read_head(body, features))
            except ValueError as error:
                heads.append(str(error))
    return Index(*np.array(places, np.int64).T), heads


def check_framing(path: Path) -> None:
    """Checks that a file may be a shard, by the header of its first record.

    Raises:
        UserError: it is not a regular file, or a file of a known format, such as one that is compressed.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would block
            raise UserError("not a regular file", path=path, remedy="copy or build the shard again")
        with open(path, "rb") as stream:
            head = stream.read(1024)
    except OSError as error:
        raise UserError(reason(error), path=path) from None
    if records.masked_crc(head[:8]) != int.from_bytes(head[8:12], "little") and (found := describe(head)):
        compressed = "write it again without compression" if "GZIP" in found else "copy or build the shard again"
        raise UserError(f"not a shard but {found}", path=path, remedy=compressed)


def _checksum(path: Path) -> str:
    """CRC-32C of a file, hexadecimal."""
    crc = 0
    with open(path, "rb") as stream:
        while data := stream.read(_CHUNK):
            crc = google_crc32c.extend(crc, data)
    return f"{crc:08x}"


def wrong_size(record: int, stored: Sequence[int], size: Sequence[int]) -> str:
    """What is wrong with a record whose features have another size, (height, width), than its image."""
    return f"record {record} says {stored[0]} × {stored[1]} pixels, but its image has {size[0]} × {size[1]}"


def _remedy(directory: Path) -> str:
    return f"build the shard again, or leave the record out: {remedies.quarantine(directory)}"


def _read_head(body: memoryview, names: Features) -> _Head:
    """Reads the start of one record; raises `ValueError`."""
    features = records.decode_example(body)
    label = features.get(names.label)
    if not isinstance(label, int) or not 0 <= label <= MAX_LABEL:
        raise ValueError(f"{names.label} is {missing(features) if label is None else 'not a label'}")
    encoded = features.get(names.image)
    if not isinstance(encoded, memoryview):
        raise ValueError(f"{names.image} is {missing(features)}")
    stored = records.stored_size(features)
    head = read_image_head(encoded)
    size = head.size or stored  # without a header no loader can decode the image: training reports it
    if size is None:
        raise ValueError("neither the record nor its image says the size of the image")
    return _Head(label, size, stored, class_names(features), head.peculiarity)


def missing(features: Mapping[str, object]) -> str:
    """That a feature is missing, and which ones the record has."""
    return f"missing (the record has {', '.join(sorted(features)) or 'no features'})"
