"""Makes what loaders need for shards that exist: an index for each, the image sizes and dataset.json.

The original project's shards have none of these; ours lack them if only the shards were copied.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType

import numpy as np

from pipelines.building.class_names import (
    ClassNames,
    Numbering,
    contradiction_with_classes,
    find_contradiction,
    merged,
)
from pipelines.building.leftovers import check_finished, clean_up
from pipelines.building.mixing import RUN_RECORDS, mixing
from pipelines.building.shard_scan import NO_LABEL, Numbers, ScanTask, ShardScan, scan_shards
from pipelines.errors import UserError, one_line, reason
from pipelines.shards import remedies
from pipelines.shards.dataset import DATASET_FILE, ClassInfo, DatasetInfo, ShardInfo, SplitInfo, shard_name
from pipelines.shards.shard_set import write_sizes
from pipelines.system.files import user_path
from pipelines.system.lock import owned
from pipelines.system.processes import run_tasks
from pipelines.system.progress import Progress, silent

_SHARD_NAME = re.compile(r"([A-Za-z0-9_]+)-(\d{5})-of-(\d{5})")
_MOST_SHARDS = 64  # that a process gets at once
ORIGINAL_LABEL_BASE = 1

_log = logging.getLogger(__name__)


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
    tasks = [ScanTask(directory / name, damaged.get(name, frozenset()), *before.get(name, ())) for name in names]
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


def _index_shards(tasks: Sequence[ScanTask], workers: int, progress: Progress) -> dict[str, ShardScan]:
    """Writes the index of each shard; what was found in the shard, by its name."""
    scans: dict[str, ShardScan] = {}
    progress("indexing", 0, len(tasks))
    count = max(1, min(_MOST_SHARDS, len(tasks) // workers))
    groups = [tasks[first : first + count] for first in range(0, len(tasks), count)]
    for results in run_tasks(scan_shards, groups, workers):
        scans |= results
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


def _warn_of_wrong_sizes(directory: Path, scans: Mapping[str, ShardScan]) -> None:
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


def _split_info(directory: Path, split: str, scans: Sequence[ShardScan]) -> SplitInfo:
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
