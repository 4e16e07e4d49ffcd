"""Checks one shard in one sequential pass, in a worker process."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from pipelines.building.class_names import ClassNames, Numbering, class_names, second_name
from pipelines.building.clean import ImageRejected, check_image
from pipelines.building.shard_scan import check_framing, missing, wrong_size
from pipelines.errors import UserError, one_line
from pipelines.shards import records, remedies
from pipelines.shards.dataset import USUAL_FEATURES, Features, ShardInfo
from pipelines.shards.index import Index, index_path, open_shard, read_index, walk
from pipelines.shards.jpeg import read_header

_BYTES_FEATURES = (records.COLORSPACE, records.FORMAT, records.FILENAME, records.SYNSET, records.TEXT)
_INT_FEATURES = (records.HEIGHT, records.WIDTH, records.CHANNELS)
_READ_AHEAD = 4 << 20  # bytes: 32 requests at once, which give 400 MB/s if each takes 10 ms


@dataclass(frozen=True)
class Fault:
    """A fault of a file, or of one record of a shard.

    Attributes:
        file: the file name.
        reason: what is wrong; for faults of files with the remedy.
        record: the number of the record in its shard, from 0; None for faults of files.
        offset: the first byte of the record in its shard; None for faults of files.
    """

    file: str
    reason: str
    record: int | None = None
    offset: int | None = None

    @classmethod
    def of(cls, file: str, error: UserError) -> "Fault":
        """The fault of a file that an error describes."""
        return cls(file, f"{error.what}; {error.remedy}" if error.remedy else error.what)

    def line(self, directory: Path) -> str:
        """One line for people: the file, the record, what is wrong."""
        place = "" if self.record is None else f"record {self.record} at byte {self.offset}: "
        return one_line(f"{directory / self.file}: {place}{self.reason}")


@dataclass(frozen=True)
class CheckTask:
    """One shard to check.

    Attributes:
        path: the shard.
        known: its entry in dataset.json; None without dataset.json.
        sizes_file: the name of its split's file of image sizes.
        sizes: its part of that file, int32 [N, 2], height and width in pixels; None if the file is missing or damaged.
        labels: the labels that records may have.
        decode: whether images are decoded; else only their headers are read.
        quarantined: records of which class names are not compared.
        features: the names of the records' features.
    """

    path: Path
    known: ShardInfo | None
    sizes_file: str
    sizes: np.ndarray | None
    labels: range
    decode: bool
    quarantined: frozenset[int] = frozenset()
    features: Features = USUAL_FEATURES

    @property
    def remedy(self) -> str:
        """The command that makes indexes, sizes and dataset.json again."""
        return f"run {remedies.build_index(self.path.parent)}"


@dataclass(frozen=True)
class ShardCheck:
    """The result for one shard.

    Attributes:
        name: the file name.
        records: number of records.
        faults: first those of files, then those of records.
        names: label -> the names of its class in the records without faults.
    """

    name: str
    records: int
    faults: tuple[Fault, ...]
    names: Numbering = field(default_factory=dict)


def check_shard(task: CheckTask) -> ShardCheck:
    """Checks a shard, its index and its part of the image sizes.

    Args:
        task: the shard and what is known of it.

    Returns:
        The number of records and the faults.

    Raises:
        OSError: the shard cannot be read.
    """
    try:
        check_framing(task.path)
        file = open_shard(task.path, ahead=_READ_AHEAD)
    except UserError as error:  # missing, empty or something else than a shard
        return ShardCheck(task.path.name, 0, (Fault.of(task.path.name, error),))
    checksum = 0
    found: list[Fault] = []
    places: list[tuple[int, int]] = []  # first byte and framed length of each record
    sizes: list[tuple[int, int]] = []  # of each image; 0 where it is not known
    names = _ShardNames()
    wrong_sizes: list[str] = []
    with file:
        for number, (offset, size, problem) in enumerate(walk(file)):
            data = file.read(offset, size)
            checksum = google_crc32c.extend(checksum, data)
            places.append((offset, size))
            sizes.append((0, 0))
            try:
                if problem:
                    raise ValueError(problem)
                record = _check_record(data, task)
            except (ImageRejected, ValueError) as error:
                found.append(Fault(task.path.name, str(error), number, offset))
            else:
                sizes[-1] = record.size
                if number not in task.quarantined:
                    names.add(number, record.label, record.names)
                    if record.stored not in (None, record.size):
                        wrong_sizes.append(wrong_size(number, record.stored, record.size))
    index = Index(*np.array(places, np.int64).T)
    whole = [*_check_index(task, index), *_check_file(task, index, None if found else f"{checksum:08x}")]
    told = [*names.faults(task.path.name), *_wrong_sizes(task.path.name, wrong_sizes)]
    faults = (*whole, *told, *found, *_check_sizes(task, index, np.array(sizes, np.int64)))
    return ShardCheck(task.path.name, index.num_records, faults, names.numbering)


class _ShardNames:
    """Collects the class names of the records of a shard, and the records that contradict earlier ones."""

    def __init__(self) -> None:
        self._first: dict[int, tuple[int, ClassNames]] = {}  # label -> the first record that has it, and its names
        self._contradictions: list[str] = []

    def add(self, record: int, label: int, names: ClassNames) -> None:
        """Adds a record."""
        first, known = self._first.setdefault(label, (record, names))
        if names.contradicts(known):
            self._contradictions.append(second_name(label, (first, known), (record, names)))
        else:
            self._first[label] = first, known.filled(names)

    @property
    def numbering(self) -> dict[int, ClassNames]:
        """The first names of each label."""
        return {label: names for label, (_, names) in self._first.items()}

    def faults(self, file: str) -> list[Fault]:
        """One fault for all records that contradict earlier ones."""
        if not self._contradictions:
            return []
        more = f" ({len(self._contradictions):,} such records)" if len(self._contradictions) > 1 else ""
        what = f"{self._contradictions[0]}{more}; write the shard again with one name for each label"
        return [Fault(file, what)]


def _wrong_sizes(file: str, wrong: list[str]) -> list[Fault]:
    """One fault for all records whose features have another size than their image."""
    if not wrong:
        return []
    more = f" ({len(wrong):,} such records)" if len(wrong) > 1 else ""
    return [Fault(file, f"{wrong[0]}{more}; other readers may need the shard to be built again, loaders do not")]


class _Checked(NamedTuple):
    """A record without faults: (height, width) of its image, the same by its features, label and class names."""

    size: tuple[int, int]
    stored: tuple[int, int] | None
    label: int
    names: ClassNames


def _check_record(data: bytes, task: CheckTask) -> _Checked:
    """Checks a record whose header is good.

    Raises:
        ValueError: the record is faulty.
        ImageRejected: its image is faulty.
    """
    body = data[records.HEADER_BYTES : -records.FOOTER_BYTES]
    if records.masked_crc(body) != int.from_bytes(data[-records.FOOTER_BYTES :], "little"):
        raise ValueError("the CRC of its data is wrong")
    features = records.decode_example(memoryview(body))
    for names, kind in ((_BYTES_FEATURES, memoryview), (_INT_FEATURES, int)):
        for name in names:
            if features.get(name) is not None and not isinstance(features[name], kind):
                raise ValueError(f"{name} has the wrong type")
    label, encoded = features.get(task.features.label), features.get(task.features.image)
    if not isinstance(label, int):
        raise ValueError(f"{task.features.label} is {missing(features)}")
    if label not in task.labels:
        raise ValueError(f"label {label} is outside {task.labels.start} to {task.labels.stop - 1}")
    if not isinstance(encoded, memoryview):
        raise ValueError(f"{task.features.image} is {missing(features)}")
    size = check_image(bytes(encoded)) if task.decode else _size_of(bytes(encoded))
    return _Checked(size, records.stored_size(features), label, class_names(features))


def _size_of(encoded: bytes) -> tuple[int, int]:
    """Height and width from the header of a JPEG."""
    header = read_header(encoded)
    return header.height, header.width


def _check_index(task: CheckTask, index: Index) -> list[Fault]:
    """The faults of the index file."""
    try:
        stored = read_index(task.path)
    except UserError as error:
        return [Fault.of(index_path(task.path).name, error)]
    if stored.to_bytes() != index.to_bytes():
        return [Fault(index_path(task.path).name, f"the index does not match the records of the shard; {task.remedy}")]
    return []


def _check_file(task: CheckTask, index: Index, checksum: str | None) -> list[Fault]:
    """Compares the shard with its entry in dataset.json; `checksum` is None if a record is faulty anyway."""
    if (known := task.known) is None:
        return []
    found = f"{index.num_records:,} records, {index.end:,} bytes"
    expected = f"{known.records:,} records, {known.bytes:,} bytes"
    accept = task.remedy
    if found == expected and checksum and known.crc32c:
        found, expected = f"checksum {checksum}", f"checksum {known.crc32c}"
        accept = f"run {remedies.new_checksums(task.path.parent)}"
    if found == expected:
        return []
    remedy = f"copy or build it again, or {accept} to accept it"
    return [Fault(task.path.name, f"has {found}, but dataset.json says {expected}; {remedy}")]


def _check_sizes(task: CheckTask, index: Index, sizes: np.ndarray) -> list[Fault]:
    """Compares the image sizes with those in the file of sizes. `sizes` has 0 where a size is not known."""
    if task.sizes is None or len(task.sizes) != index.num_records:  # another number of records is a fault of the shard
        return []
    wrong = np.flatnonzero(np.any((sizes != task.sizes) & (sizes > 0), axis=1))
    if not len(wrong):
        return []
    first = int(wrong[0])
    (is_height, is_width), (height, width) = sizes[first].tolist(), task.sizes[first].tolist()
    what = f"{len(wrong):,} sizes differ from the images in {task.path.name}"
    example = f"record {first} at byte {index.offsets[first]} has {is_height} × {is_width}, not {height} × {width}"
    return [Fault(task.sizes_file, f"{what}: {example}; {task.remedy}")]
