"""Makes what loaders need for shards that exist: an index for each, the image sizes and dataset.json.

The original project's shards have none of these; ours lack them if only the shards were copied. Only the start of each
record is read: a shard is mapped into memory, and the pages with pixels are never touched.
"""

import io
import logging
import mmap
import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import cast

import numpy as np
from PIL import Image

from pipelines.building.class_names import (
    ClassNames,
    Numbering,
    class_names,
    contradiction_with_classes,
    find_contradiction,
    merged,
    second_name,
)
from pipelines.building.formats import describe
from pipelines.building.leftovers import check_finished, clean_up
from pipelines.building.mixing import RUN_RECORDS, mixing
from pipelines.errors import UserError, one_line, reason
from pipelines.shards import records, remedies
from pipelines.shards.dataset import DATASET_FILE, ClassInfo, DatasetInfo, ShardInfo, SplitInfo, shard_name
from pipelines.shards.index import locate, write_index
from pipelines.shards.jpeg import read_header
from pipelines.shards.shard_set import write_sizes
from pipelines.system.files import user_path
from pipelines.system.lock import owned
from pipelines.system.processes import run_tasks
from pipelines.system.progress import Progress, silent

_SHARD_NAME = re.compile(r"([A-Za-z0-9_]+)-(\d{5})-of-(\d{5})")
ORIGINAL_LABEL_BASE = 1
MAX_LABEL = 2**24  # a larger number is a wrong feature, not a label
NO_LABEL = -1

_log = logging.getLogger(__name__)

Numbers = frozenset[int]  # record numbers in their shard


@dataclass(frozen=True)
class _IndexTask:
    """One shard to index.

    Attributes:
        path: the shard.
        damaged: records to quarantine.
        known: its entry in dataset.json, kept if the shard has the same number of records and bytes.
        quarantined: its records in quarantine, kept in the same case.
    """

    path: Path
    damaged: Numbers
    known: ShardInfo | None = None
    quarantined: Numbers = frozenset()


@dataclass(frozen=True)
class _ShardScan:
    """What the records of one shard say.

    Attributes:
        info: the shard's entry for dataset.json.
        left_out: records in quarantine.
        sizes: int32 [N, 2], height and width in pixels; 1 × 1 for records in quarantine whose size cannot be read.
        labels: int64 [N]; NO_LABEL for records in quarantine.
        names: label -> the names of its class.
        wrong_sizes: for each record whose features have another size than its image, what they say.
    """

    info: ShardInfo
    left_out: Numbers
    sizes: np.ndarray
    labels: np.ndarray
    names: dict[int, ClassNames]
    wrong_sizes: list[str]


def adopt_shards(
    directory: str | Path,
    label_base: int | None = None,
    workers: int = 1,
    progress: Progress = silent,
    damaged: Mapping[str, Numbers] = MappingProxyType({}),
) -> DatasetInfo:
    """Writes indexes, image sizes and dataset.json beside the shards of a folder.

    An existing dataset.json keeps its classes and its notes on the build. Shards with the same number of records and
    bytes as before keep their checksums and quarantine. Image sizes are read from the images; a warning counts the
    records whose features have other sizes.

    Args:
        directory: the folder, with shards named <split>-00000-of-01024.
        label_base: the label of the first class. None takes it from an existing dataset.json; without one it is 0 if a
            record has label 0, else 1, as in the original project's shards.
        workers: number of processes.
        progress: called with the number of shards done.
        damaged: shard name -> records to quarantine; they may be unreadable.

    Returns:
        The content of dataset.json.

    Raises:
        UserError: the folder is in use or has an unfinished build, a shard is missing, a record cannot be read, or
            labels or class names contradict each other.
    """
    directory = user_path(directory).absolute()
    with owned(directory) if directory.is_dir() else nullcontext():
        return _adopt(directory, label_base, workers, progress, damaged)


def _adopt(
    directory: Path, label_base: int | None, workers: int, progress: Progress, damaged: Mapping[str, Numbers]
) -> DatasetInfo:
    check_finished(directory)
    splits = find_shards(directory)
    known = DatasetInfo.load(directory) if (directory / DATASET_FILE).exists() else None
    names = [name for shards in splits.values() for name in shards]
    before = known_shards(known) if known else {}
    clean_up(directory)
    tasks = [_IndexTask(directory / name, damaged.get(name, frozenset()), *before.get(name, ())) for name in names]
    try:
        scans = _index_shards(tasks, workers, progress)
        _warn_of_wrong_sizes(directory, scans)
        names_of = {split: {name: scans[name].names for name in shards} for split, shards in splits.items()}
        if found := find_contradiction(names_of):
            raise UserError(
                found.what, path=directory / found.file, remedy="write the shards again with the same labels"
            )
        labels = np.unique(np.concatenate([np.unique(scan.labels) for scan in scans.values()]))
        classes, base = _classes(directory, labels[labels != NO_LABEL], merged(names_of), known, label_base)
        info = DatasetInfo(
            label_base=base,
            classes=classes,
            splits={
                split: _split_info(directory, split, [scans[name] for name in shards])
                for split, shards in splits.items()
            },
            build=known.build if known else {},
        )
        info.save(directory)
    except OSError as error:
        raise UserError(reason(error), path=directory) from None
    _warn_of_sorted(directory, info)
    return info


def _index_shards(tasks: Sequence[_IndexTask], workers: int, progress: Progress) -> dict[str, _ShardScan]:
    """Writes the index of each shard; what was found in the shard, by its name."""
    scans: dict[str, _ShardScan] = {}
    progress("indexing", 0, len(tasks))
    for name, result in run_tasks(_index_shard, tasks, workers):
        scans[name] = result
        progress("indexing", len(scans), len(tasks))
    return scans


def find_shards(directory: Path) -> dict[str, list[str]]:
    """Finds the shards of a folder by their names.

    Args:
        directory: the folder.

    Returns:
        The file names of each split, in order.

    Raises:
        UserError: there are no shards, one is missing, or there are shards of several data sets.
    """
    if not directory.is_dir():
        raise UserError("no such folder", path=directory)
    found: dict[str, dict[int, set[int]]] = {}
    for path in directory.iterdir():
        if match := _SHARD_NAME.fullmatch(path.name):
            found.setdefault(match[1], {}).setdefault(int(match[3]), set()).add(int(match[2]))
    if not found:
        remedy = f"build some with {remedies.build_shards('DIR', 'SHARDS')}"
        raise UserError("no shards (train-00000-of-…) in this folder", path=directory, remedy=remedy)
    splits = {}
    for split, counts in sorted(found.items()):
        if len(counts) > 1:
            sets = " and ".join(f"{split}-*-of-{count:05d}" for count in sorted(counts))
            raise UserError(f"has shards of several data sets, {sets}", path=directory, remedy="keep one of them")
        ((count, numbers),) = counts.items()
        expected = [shard_name(split, number, count) for number in range(count)]
        if missing := sorted(set(range(count)) - numbers):
            path = directory / expected[missing[0]]
            raise UserError("the shard is missing", path=path, remedy="copy or build it again")
        if len(numbers) > count:
            path = directory / shard_name(split, max(numbers), count)
            raise UserError(f"the number is larger than that of {expected[-1]}", path=path, remedy="remove the file")
        splits[split] = expected
    return splits


def known_shards(info: DatasetInfo) -> dict[str, tuple[ShardInfo, Numbers]]:
    """Shard name -> its entry in dataset.json, and its records in quarantine."""
    found = {}
    for part in info.splits.values():
        first = 0
        for shard in part.shards:
            numbers = (number - first for number in part.quarantine)
            found[shard.file] = shard, Numbers(number for number in numbers if 0 <= number < shard.records)
            first += shard.records
    return found


def _index_shard(task: _IndexTask) -> tuple[str, _ShardScan]:
    """Reads the start of each record of a shard and writes its index."""
    path = task.path
    check_framing(path)
    index, problems = locate(path)
    info = ShardInfo(file=path.name, records=index.num_records, bytes=index.end)
    left_out = task.damaged
    if task.known and (task.known.records, task.known.bytes) == (info.records, info.bytes):
        info, left_out = task.known, left_out | task.quarantined
    sizes = np.ones((index.num_records, 2), np.int32)
    labels = np.full(index.num_records, NO_LABEL, np.int64)
    wrong_sizes: list[str] = []
    first: dict[int, tuple[int, ClassNames]] = {}  # label -> the first record that has it, and its names
    with open(path, "rb") as stream:
        # Not closed here: a traceback may still have a view of it, and then mmap refuses to close.
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # no read-ahead into the pixels
    shard = memoryview(mapped)
    for number, (offset, size) in enumerate(index.pairs()):
        body = shard[offset + records.HEADER_BYTES : offset + size - records.FOOTER_BYTES]
        try:
            if number in problems:
                raise ValueError(problems[number])
            label, sizes[number], stored, names = _read_head(body)
        except ValueError as error:
            if number not in left_out:
                what = f"record {number} at byte {offset}: {error}"
                raise UserError(what, path=path, remedy=_remedy(path.parent)) from None
        else:
            if number not in left_out:
                labels[number] = label
                record, known_names = first.get(label, (number, names))
                if names.contradicts(known_names):
                    what = second_name(label, (record, known_names), (number, names))
                    raise UserError(what, path=path, remedy="write the shard again with one name for each label")
                first[label] = record, known_names.filled(names)
                if stored and stored != tuple(sizes[number].tolist()):
                    wrong_sizes.append(wrong_size(number, stored, sizes[number].tolist()))
    write_index(path, index)
    named = {label: names for label, (_, names) in first.items()}
    return path.name, _ShardScan(info, left_out, sizes, labels, named, wrong_sizes)


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


def wrong_size(record: int, stored: Sequence[int], size: Sequence[int]) -> str:
    """What is wrong with a record whose features have another size, (height, width), than its image."""
    return f"record {record} says {stored[0]} × {stored[1]} pixels, but its image has {size[0]} × {size[1]}"


def _warn_of_wrong_sizes(directory: Path, scans: Mapping[str, _ShardScan]) -> None:
    if wrong := [(name, what) for name, scan in sorted(scans.items()) for what in scan.wrong_sizes]:
        name, what = wrong[0]
        count = f"the features of {len(wrong):,} records have wrong image sizes" if len(wrong) > 1 else what
        first = f" (the first: {what})" if len(wrong) > 1 else ""
        _log.warning("%s: %s%s; the sizes of the images are used", directory / name, count, first)


def _warn_of_sorted(directory: Path, info: DatasetInfo) -> None:
    for split, part in info.splits.items():
        if part.is_sorted and split != "validation":
            found = f"{RUN_RECORDS} neighbours have {part.mixing:.0%} of the classes of shuffled ones"
            what = "training reads small blocks from many places to mix them; shards of build_shards need less memory"
            _log.warning("%s: the %s shards are sorted by class (%s); %s", directory, split, found, what)


def _remedy(directory: Path) -> str:
    return f"build the shard again, or leave the record out: {remedies.quarantine(directory)}"


def _read_head(body: memoryview) -> tuple[int, tuple[int, int], tuple[int, int] | None, ClassNames]:
    """Label, (height, width) of the image, the same by the features, and the names of the class of one record."""
    features = records.decode_example(body)
    label = features.get(records.LABEL)
    if not isinstance(label, int) or not 0 <= label <= MAX_LABEL:
        raise ValueError(f"{records.LABEL} is {'missing' if label is None else 'not a label'}")
    encoded = features.get(records.ENCODED)
    if not isinstance(encoded, memoryview):
        raise ValueError(f"{records.ENCODED} is missing")
    stored = records.stored_size(features)
    size = _size_of(encoded) or stored  # without a header no loader can decode the image: training reports it
    if size is None:
        raise ValueError("neither the record nor its image says the size of the image")
    return label, size, stored, class_names(features)


def _size_of(encoded: memoryview) -> tuple[int, int] | None:
    """Height and width from the header of the image itself; None if it cannot be read."""
    try:
        header = read_header(cast(bytes, encoded))  # a view reads the same; copying would touch all pixels
        if header.height and header.width:
            return header.height, header.width
    except ValueError:  # not a JPEG
        pass
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _classes(
    directory: Path, labels: np.ndarray, names: Numbering, known: DatasetInfo | None, label_base: int | None
) -> tuple[list[ClassInfo], int]:
    """The classes in label order and the label base. `labels` and `names` are those of all records."""
    if not len(labels):
        raise UserError("every record is quarantined", path=directory, remedy="build the shards again")
    lowest, highest = int(labels.min()), int(labels.max())
    base = label_base
    if base is None:
        base = known.label_base if known else min(lowest, ORIGINAL_LABEL_BASE)
    if lowest < base:
        raise UserError(
            f"a record has label {lowest}, but the first class has label {base}",
            path=directory,
            remedy=f"choose the label base {lowest}",
            setting="label_base",
        )
    if known and base == known.label_base:
        if highest >= base + known.num_classes:
            raise UserError(
                f"a record has label {highest}, but dataset.json has {known.num_classes} classes from label {base} on",
                path=directory,
                remedy="remove dataset.json if it belongs to other shards",
            )
        if what := contradiction_with_classes(known.classes, base, names):
            raise UserError(what, path=directory, remedy="remove dataset.json if it belongs to other shards")
        return known.classes, base
    return [_class_info(label - base, names.get(label, ClassNames())) for label in range(base, highest + 1)], base


def _class_info(number: int, names: ClassNames) -> ClassInfo:
    """The entry of a class for dataset.json; `number` is counted from 0."""
    return ClassInfo(name=one_line(names.text or names.synset) or f"class {number}", wnid=names.wnid)


def _split_info(directory: Path, split: str, scans: Sequence[_ShardScan]) -> SplitInfo:
    """Writes the image sizes of a split. Returns its entry for dataset.json."""
    sizes = f"{split}-sizes.npy"
    write_sizes(directory / sizes, np.concatenate([scan.sizes for scan in scans]))
    ends = np.cumsum([scan.info.records for scan in scans]).tolist()
    quarantine = [
        end - scan.info.records + number for end, scan in zip(ends, scans, strict=True) for number in scan.left_out
    ]
    labels = np.concatenate([scan.labels for scan in scans])
    return SplitInfo(
        shards=[scan.info for scan in scans],
        sizes=sizes,
        quarantine=sorted(quarantine),
        mixing=mixing(labels[labels != NO_LABEL]),
    )
