"""Checks a folder of shards of any writer, and quarantines damaged records so that no plan contains them.

Checked in each shard: both CRCs of every record, its features, its label and its image (decoded to its last block); the
index, the image sizes and the checksum of the shard. A faulty record can be quarantined. `tools.build_index` repairs
indexes, sizes and dataset.json, and leaves quarantined records out.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from pipelines.building.adopt import adopt_shards, known_shards
from pipelines.building.class_names import Numbering, contradiction_with_classes, find_contradiction, merged
from pipelines.building.leftovers import check_finished, find_leftovers, size_text
from pipelines.building.shard_checker import CheckTask, Fault, ShardCheck, check_shard
from pipelines.building.shard_scan import MAX_LABEL, Numbers
from pipelines.building.unlisted import find_unlisted
from pipelines.building.writers import read_format
from pipelines.errors import UserError, reason
from pipelines.shards import remedies
from pipelines.shards.dataset import DATASET_FILE, DatasetInfo, SplitInfo
from pipelines.shards.finding import find_shards
from pipelines.shards.shard_set import read_sizes
from pipelines.system.files import user_path, write_atomic
from pipelines.system.lock import owned
from pipelines.system.processes import run_tasks
from pipelines.system.progress import Progress, silent

REPORT_VERSION = 1


@dataclass(frozen=True)
class CheckReport:
    """The result of a check.

    Attributes:
        directory: the folder of shards.
        info: the content of dataset.json; None if it is missing or damaged.
        records: number of records in each split.
        images_decoded: whether all images were decoded.
        faults: in the order of the shards, without faults of records that are already quarantined.
        quarantined: number of records that are already quarantined.
    """

    directory: Path
    info: DatasetInfo | None
    records: Mapping[str, int]
    images_decoded: bool
    faults: tuple[Fault, ...]
    quarantined: int

    @property
    def damaged(self) -> dict[str, Numbers]:
        """The faulty records of each shard: file name -> record numbers."""
        found: dict[str, set[int]] = {}
        for fault in self.faults:
            if fault.record is not None:
                found.setdefault(fault.file, set()).add(fault.record)
        return {name: frozenset(numbers) for name, numbers in found.items()}

    def save(self, path: Path) -> None:
        """Writes the report as JSON, whole or not at all."""
        content = {
            "version": REPORT_VERSION,
            "directory": str(self.directory),
            "records": dict(self.records),
            "images_decoded": self.images_decoded,
            "quarantined": self.quarantined,
            "faults": [asdict(fault) for fault in self.faults],
        }
        write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def check_shards(
    directory: str | Path, decode: bool = True, workers: int = 1, progress: Progress = silent
) -> CheckReport:
    """Checks every record of every split. Changes nothing.

    Args:
        directory: the folder of shards; without dataset.json, label range and counts are not checked.
        decode: decode every image; False checks everything else.
        workers: number of processes.
        progress: called with the number of records done.

    Returns:
        The faults.

    Raises:
        UserError: there are no shards, the folder has an unfinished build, or a shard cannot be read.
    """
    directory = user_path(directory).absolute()
    check_finished(directory)
    info, faults = _load_info(directory)
    splits = _shard_names(directory, info)
    tasks, more = check_tasks(directory, info, decode)
    names = [name for shards in splits.values() for name in shards]
    results: dict[str, ShardCheck] = {}
    total = sum(part.num_records for part in info.splits.values()) if info else 0
    progress("checking", 0, total)
    try:
        for result in run_tasks(check_shard, tasks, workers):
            results[result.name] = result
            progress("checking", sum(result.records for result in results.values()), total)
    except OSError as error:
        raise UserError(reason(error), path=error.filename or directory) from None
    known = {name: numbers for name, (_, numbers) in known_shards(info).items()} if info else {}
    more += _check_leftovers(directory)
    if info:
        more += [Fault(item.file, f"{item.what}; {item.remedy}") for item in find_unlisted(directory, names)]
    more += _check_class_names(
        info, {split: {name: results[name].names for name in shards} for split, shards in splits.items()}
    )
    found = [fault for name in names for fault in results[name].faults]
    fresh = [fault for fault in found if fault.record is None or fault.record not in known.get(fault.file, ())]
    return CheckReport(
        directory=directory,
        info=info,
        records={split: sum(results[name].records for name in shards) for split, shards in splits.items()},
        images_decoded=decode,
        faults=(*faults, *more, *fresh),
        quarantined=sum(map(len, known.values())),
    )


def _check_class_names(info: DatasetInfo | None, names: Mapping[str, Mapping[str, Numbering]]) -> list[Fault]:
    """The fault that shards, splits or dataset.json number the classes differently."""
    if found := find_contradiction(names):
        return [Fault(found.file, f"{found.what}; write the shards again with the same labels")]
    if info and (what := contradiction_with_classes(info.classes, info.label_base, merged(names))):
        return [Fault(DATASET_FILE, f"{what}; remove dataset.json if it belongs to other shards")]
    return []


def _check_leftovers(directory: Path) -> list[Fault]:
    """The files that stopped processes left."""
    remedy = f"remove it, or run {remedies.build_index(directory)}"
    return [
        Fault(path.name, f"a process that was stopped left it ({size_text(path)}); {remedy}")
        for path in find_leftovers(directory)
    ]


def quarantine(report: CheckReport, workers: int = 1) -> DatasetInfo:
    """Adds the faulty records to the quarantine in dataset.json. Makes dataset.json and the indexes if it is missing.

    Args:
        report: the faults.
        workers: number of processes.

    Returns:
        The new content of dataset.json.

    Raises:
        UserError: dataset.json cannot be made or written, has changed since the check, or the folder is in use.
    """
    with owned(report.directory):
        if report.info is None:
            return adopt_shards(report.directory, workers=workers, damaged=report.damaged)
        if _load_info(report.directory)[0] != report.info:
            raise UserError(
                "changed during the check", path=report.directory / DATASET_FILE, remedy="repeat the same command"
            )
        splits = {split: _with_damaged(part, report.damaged) for split, part in report.info.splits.items()}
        info = report.info.model_copy(update={"splits": splits})
        try:
            info.save(report.directory)
        except OSError as error:
            raise UserError(reason(error), path=report.directory / DATASET_FILE) from None
        return info


def _with_damaged(part: SplitInfo, damaged: Mapping[str, Numbers]) -> SplitInfo:
    """The split with more records in quarantine."""
    numbers = set(part.quarantine)
    first = 0
    for shard in part.shards:
        numbers |= {first + number for number in damaged.get(shard.file, ()) if number < shard.records}
        first += shard.records
    return part.model_copy(update={"quarantine": sorted(numbers)})


def _load_info(directory: Path) -> tuple[DatasetInfo | None, list[Fault]]:
    """The content of dataset.json, or the fault that it has."""
    try:
        return DatasetInfo.load(directory), []
    except UserError as error:
        if not directory.is_dir():
            raise
        return None, [Fault.of(DATASET_FILE, error)]


def _shard_names(directory: Path, info: DatasetInfo | None) -> dict[str, list[str]]:
    """The shards of each split, by dataset.json or else by their file names."""
    if info is None:
        return find_shards(directory)
    return {split: [shard.file for shard in part.shards] for split, part in info.splits.items()}


def check_tasks(directory: Path, info: DatasetInfo | None, decode: bool) -> tuple[list[CheckTask], list[Fault]]:
    """Makes one task for each shard, split by split.

    Args:
        directory: the folder of shards.
        info: the content of dataset.json, if there is one.
        decode: whether images are decoded.

    Returns:
        The tasks, and the faults of the files of image sizes.

    Raises:
        UserError: without dataset.json: there are no shards, or one is missing.
    """
    if info is None:
        found = find_shards(directory)
        names = read_format(directory, found).features
        anything = range(MAX_LABEL + 1)
        return [
            CheckTask(directory / name, None, "", None, anything, decode, features=names)
            for name in chain.from_iterable(found.values())
        ], []
    labels = range(info.label_base, info.label_base + info.num_classes)
    quarantined = known_shards(info)
    tasks, faults = [], []
    for split, part in info.splits.items():
        sizes: np.ndarray | None = None
        try:
            sizes = read_sizes(directory, split, part)
        except UserError as error:
            faults.append(Fault.of(part.sizes, error))
        first = 0
        for shard in part.shards:
            rows = None if sizes is None else sizes[first : first + shard.records]
            left_out = quarantined[shard.file][1]
            path = directory / shard.file
            tasks.append(CheckTask(path, shard, part.sizes, rows, labels, decode, left_out, info.features))
            first += shard.records
    return tasks, faults
