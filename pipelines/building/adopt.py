"""Shards that exist already get what loaders need: an index each, the image sizes, and dataset.json.

The original project's shards have none of these; ours lose them when shards are copied alone. Only heads of records are
read: a shard is mapped into memory, and the pages that hold pixels are never touched.
"""

import io
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from pipelines.errors import UserError
from pipelines.shards import records
from pipelines.shards.dataset import DATASET_FILE, ClassInfo, DatasetInfo, ShardInfo, SplitInfo, shard_name
from pipelines.shards.index import locate, write_index
from pipelines.shards.shard_set import write_sizes
from pipelines.system.files import remove_leftovers
from pipelines.system.processes import run_tasks
from pipelines.system.progress import Progress, silent

_SHARD_NAME = re.compile(r"([A-Za-z0-9_]+)-(\d{5})-of-(\d{5})")
_WNID = re.compile(r"n\d{8}")
ORIGINAL_LABEL_BASE = 1
MAX_LABEL = 2**24  # more classes than anyone has: a wrong feature, not a label
NO_LABEL = -1

Numbers = frozenset[int]  # of records, in their shard


@dataclass(frozen=True)
class _IndexTask:
    """One shard to index; `known` and `quarantined`, what dataset.json says of it, hold if it is still the same."""

    path: Path
    damaged: Numbers
    known: ShardInfo | None = None
    quarantined: Numbers = frozenset()


@dataclass(frozen=True)
class _ShardScan:
    """What the heads of one shard's records say; `classes` maps a label to (synset, text).

    Records that are left out have NO_LABEL, and the size 1 × 1 if theirs cannot be read.
    """

    info: ShardInfo
    left_out: Numbers
    sizes: np.ndarray
    labels: np.ndarray
    classes: dict[int, tuple[str, str]]


def adopt_shards(
    directory: str | Path,
    label_base: int | None = None,
    workers: int = 1,
    progress: Progress = silent,
    damaged: Mapping[str, Numbers] = MappingProxyType({}),
) -> DatasetInfo:
    """Writes indexes, image sizes and dataset.json beside the shards of a folder.

    Args:
        directory: holds shards named <split>-00000-of-01024.
        label_base: the label of the first class. Default: what a dataset.json that is there says; else 0 if a
            record has label 0; else 1, as in the original project's shards.
        workers: processes.
        progress: told how many shards are done.
        damaged: shard name -> records to quarantine; they need not be readable.

    An existing dataset.json keeps its classes, its notes on the build and, for shards that have as many records and
    bytes as before, checksums and quarantine. Raises `UserError` naming shard and record if one cannot be read.
    """
    directory = Path(directory).expanduser().absolute()
    splits = find_shards(directory)
    known = DatasetInfo.load(directory) if (directory / DATASET_FILE).exists() else None
    names = [name for shards in splits.values() for name in shards]
    before = known_shards(known) if known else {}
    remove_leftovers(directory)
    tasks = [_IndexTask(directory / name, damaged.get(name, frozenset()), *before.get(name, ())) for name in names]
    scans: dict[str, _ShardScan] = {}
    progress("indexing", 0, len(names))
    try:
        for name, result in run_tasks(_index_shard, tasks, workers):
            scans[name] = result
            progress("indexing", len(scans), len(names))
        classes, base = _classes(directory, list(scans.values()), known, label_base)
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
        raise UserError(f"{directory}: {error.strerror or error}") from None
    return info


def find_shards(directory: Path) -> dict[str, list[str]]:
    """The shard names of each split, in order. Raises `UserError` if there are none, or one of them is missing."""
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder")
    found: dict[str, dict[int, set[int]]] = {}
    for path in directory.iterdir():
        if match := _SHARD_NAME.fullmatch(path.name):
            found.setdefault(match[1], {}).setdefault(int(match[3]), set()).add(int(match[2]))
    if not found:
        raise UserError(
            f"{directory}: no shards here (train-00000-of-…); `python -m tools.build_shards --source DIR --output "
            "SHARDS` builds some"
        )
    splits = {}
    for split, counts in sorted(found.items()):
        if len(counts) > 1:
            sets = " and ".join(f"{split}-*-of-{count:05d}" for count in sorted(counts))
            raise UserError(f"{directory}: holds shards of several data sets, {sets}; keep one of them")
        ((count, numbers),) = counts.items()
        expected = [shard_name(split, number, count) for number in range(count)]
        if missing := sorted(set(range(count)) - numbers):
            raise UserError(f"{directory / expected[missing[0]]}: the shard is missing; copy or build it again")
        if len(numbers) > count:
            raise UserError(f"{directory}: {split} has a shard beyond {expected[-1]}; remove it")
        splits[split] = expected
    return splits


def known_shards(info: DatasetInfo) -> dict[str, tuple[ShardInfo, Numbers]]:
    """Shard name -> what dataset.json says of it, and which of its records it has in quarantine."""
    found = {}
    for part in info.splits.values():
        first = 0
        for shard in part.shards:
            numbers = (number - first for number in part.quarantine)
            found[shard.file] = shard, Numbers(number for number in numbers if 0 <= number < shard.records)
            first += shard.records
    return found


def _index_shard(task: _IndexTask) -> tuple[str, _ShardScan]:
    """Reads the heads of a shard's records and writes its index."""
    path = task.path
    index, problems = locate(path)
    info = ShardInfo(file=path.name, records=index.num_records, bytes=index.end)
    left_out = task.damaged
    if task.known and (task.known.records, task.known.bytes) == (info.records, info.bytes):
        info, left_out = task.known, left_out | task.quarantined
    sizes = np.ones((index.num_records, 2), np.int32)
    labels = np.full(index.num_records, NO_LABEL, np.int64)
    classes: dict[int, tuple[str, str]] = {}
    with open(path, "rb") as stream:
        # Not closed by hand: a view of it may live on in a traceback, and mmap refuses to close then.
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)  # no read-ahead into the pixels
    shard = memoryview(mapped)
    for number, (offset, size) in enumerate(index.pairs()):
        body = shard[offset + records.HEADER_BYTES : offset + size - records.FOOTER_BYTES]
        try:
            if number in problems:
                raise ValueError(problems[number])
            label, sizes[number], names = _read_head(body)
        except ValueError as error:
            if number not in left_out:
                raise UserError(f"{path}: record {number} at byte {offset}: {error}; {_remedy(path.parent)}") from None
        else:
            if number not in left_out:
                labels[number] = label
                classes.setdefault(label, names)
    write_index(path, index)
    return path.name, _ShardScan(info, left_out, sizes, labels, classes)


def _remedy(directory: Path) -> str:
    return f"build the shard again, or leave it out: `python -m tools.check_shards {directory} --quarantine`"


def _read_head(body: memoryview) -> tuple[int, tuple[int, int], tuple[str, str]]:
    """Label, (height, width) and (synset, text) of one record."""
    features = records.decode_example(body)
    label = features.get(records.LABEL)
    if not isinstance(label, int) or not 0 <= label <= MAX_LABEL:
        raise ValueError(f"{records.LABEL} is {'missing' if label is None else 'no label'}")
    encoded = features.get(records.ENCODED)
    if not isinstance(encoded, memoryview):
        raise ValueError(f"{records.ENCODED} is missing")
    size = records.stored_size(features) or _size_of(encoded)
    return label, size, (_text(features.get(records.SYNSET)), _text(features.get(records.TEXT)))


def _size_of(encoded: memoryview) -> tuple[int, int]:
    """Height and width from the image's own header."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ValueError("the record has no image sizes, nor has its image") from None


def _text(value: memoryview | int | None) -> str:
    return bytes(value).decode("utf-8", "replace") if isinstance(value, memoryview) else ""


def _classes(
    directory: Path, scans: Sequence[_ShardScan], known: DatasetInfo | None, label_base: int | None
) -> tuple[list[ClassInfo], int]:
    """The classes in label order and the label base."""
    labels = np.concatenate([np.unique(scan.labels) for scan in scans])
    labels = labels[labels != NO_LABEL]
    if not len(labels):
        raise UserError(f"{directory}: every record is quarantined; build the shards again")
    lowest, highest = int(labels.min()), int(labels.max())
    base = label_base
    if base is None:
        base = known.label_base if known else min(lowest, ORIGINAL_LABEL_BASE)
    if lowest < base:
        raise UserError(f"{directory}: a record has label {lowest}, below the label base {base}; give --label-base")
    if known and base == known.label_base:
        if highest >= base + known.num_classes:
            raise UserError(
                f"{directory}: a record has label {highest}, but dataset.json knows {known.num_classes} classes from "
                f"label {base} on; remove dataset.json if the shards are others"
            )
        return known.classes, base
    names: dict[int, tuple[str, str]] = {}
    for result in scans:
        names |= result.classes
    return [_class_info(label - base, *names.get(label, ("", ""))) for label in range(base, highest + 1)], base


def _class_info(number: int, synset: str, text: str) -> ClassInfo:
    return ClassInfo(name=text or synset or f"class {number}", wnid=synset if _WNID.fullmatch(synset) else None)


def _split_info(directory: Path, split: str, scans: Sequence[_ShardScan]) -> SplitInfo:
    """Writes the split's image sizes; what dataset.json says of its shards."""
    sizes = f"{split}-sizes.npy"
    write_sizes(directory / sizes, np.concatenate([scan.sizes for scan in scans]))
    ends = np.cumsum([scan.info.records for scan in scans]).tolist()
    quarantine = [
        end - scan.info.records + number for end, scan in zip(ends, scans, strict=True) for number in scan.left_out
    ]
    return SplitInfo(shards=[scan.info for scan in scans], sizes=sizes, quarantine=sorted(quarantine))
