"""Checks a folder of shards, whoever wrote them, and takes damaged records out of every plan.

Of each shard: both CRCs of every record, its features, its label, its image (decoded to its last block), its index, its
image sizes, its checksum. A record with a fault is put into quarantine; what is wrong with an index, the sizes or
dataset.json is mended by `tools.build_index`, which leaves quarantined records out.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from pipelines.building.adopt import MAX_LABEL, Numbers, adopt_shards, find_shards, known_shards
from pipelines.building.shard_checker import CheckTask, Fault, ShardCheck, check_shard
from pipelines.errors import UserError
from pipelines.shards.dataset import DATASET_FILE, DatasetInfo, SplitInfo
from pipelines.shards.shard_set import read_sizes
from pipelines.system.files import write_atomic
from pipelines.system.processes import run_tasks
from pipelines.system.progress import Progress, silent

REPORT_VERSION = 1


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes:
        info: dataset.json, None if there is none that can be read.
        records: how many there are in each split. images_decoded: whether all images were decoded.
        faults: in the order of the shards, without those of records that are in quarantine already.
        quarantined: how many records are in quarantine already.
    """

    directory: Path
    info: DatasetInfo | None
    records: Mapping[str, int]
    images_decoded: bool
    faults: tuple[Fault, ...]
    quarantined: int

    @property
    def damaged(self) -> dict[str, Numbers]:
        """Shard name -> the faulty records in it."""
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
    """Checks every record of every split; changes nothing.

    Args:
        directory: with dataset.json, or without: then what it would say (labels, counts) is not checked.
        decode: decode every image; else everything but that.
        workers: processes.
        progress: told how many records are done.

    Raises `UserError` if there are no shards at all.
    """
    directory = Path(directory).expanduser().absolute()
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
        raise UserError(f"{error.filename or directory}: {error.strerror or error}") from None
    known = {name: numbers for name, (_, numbers) in known_shards(info).items()} if info else {}
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


def quarantine(report: CheckReport, workers: int = 1) -> DatasetInfo:
    """Adds the faulty records to the quarantine of dataset.json, which is made with all that belongs to it if missing.

    Raises `UserError` if that is not possible.
    """
    if report.info is None:
        return adopt_shards(report.directory, workers=workers, damaged=report.damaged)
    splits = {split: _with_damaged(part, report.damaged) for split, part in report.info.splits.items()}
    info = report.info.model_copy(update={"splits": splits})
    try:
        info.save(report.directory)
    except OSError as error:
        raise UserError(f"{report.directory / DATASET_FILE}: {error.strerror or error}") from None
    return info


def _with_damaged(part: SplitInfo, damaged: Mapping[str, Numbers]) -> SplitInfo:
    numbers = set(part.quarantine)
    first = 0
    for shard in part.shards:
        numbers |= {first + number for number in damaged.get(shard.file, ()) if number < shard.records}
        first += shard.records
    return part.model_copy(update={"quarantine": sorted(numbers)})


def _load_info(directory: Path) -> tuple[DatasetInfo | None, list[Fault]]:
    try:
        return DatasetInfo.load(directory), []
    except UserError as error:
        if not directory.is_dir():
            raise
        return None, [Fault(DATASET_FILE, str(error).removeprefix(f"{directory / DATASET_FILE}: "))]


def _shard_names(directory: Path, info: DatasetInfo | None) -> dict[str, list[str]]:
    if info is None:
        return find_shards(directory)
    return {split: [shard.file for shard in part.shards] for split, part in info.splits.items()}


def check_tasks(directory: Path, info: DatasetInfo | None, decode: bool) -> tuple[list[CheckTask], list[Fault]]:
    """One task a shard, split by split, and what is wrong with the sidecars that they would be checked against."""
    if info is None:
        names = chain.from_iterable(find_shards(directory).values())
        return [CheckTask(directory / name, None, "", None, range(MAX_LABEL + 1), decode) for name in names], []
    labels = range(info.label_base, info.label_base + info.num_classes)
    tasks, faults = [], []
    for split, part in info.splits.items():
        sizes: np.ndarray | None = None
        try:
            sizes = read_sizes(directory, split, part)
        except UserError as error:
            faults.append(Fault(part.sizes, str(error).removeprefix(f"{directory / part.sizes}: ")))
        first = 0
        for shard in part.shards:
            rows = None if sizes is None else sizes[first : first + shard.records]
            tasks.append(CheckTask(directory / shard.file, shard, part.sizes, rows, labels, decode))
            first += shard.records
    return tasks, faults
