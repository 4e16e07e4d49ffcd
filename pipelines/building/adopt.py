"""Makes what loaders need for shards that exist: an index for each, the image sizes and dataset.json.

Other writers' shards have none of these, such as those of the original project and of tensorflow-datasets; ours lack
them if only the shards were copied. Nothing is written into a shard.
"""

import logging
from collections import Counter
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
from pipelines.building.unlisted import passed_over
from pipelines.building.writers import TFDS_LABEL_BASE, RecordFormat, read_format
from pipelines.errors import UserError, one_line, reason
from pipelines.shards import remedies
from pipelines.shards.dataset import DATASET_FILE, ClassInfo, DatasetInfo, ShardInfo, SplitInfo
from pipelines.shards.finding import find_shards
from pipelines.shards.shard_set import write_sizes
from pipelines.system.files import user_path
from pipelines.system.lock import owned
from pipelines.system.processes import run_tasks
from pipelines.system.progress import Progress, silent
from pipelines.system.reading import NotRegular

_MOST_SHARDS = 64  # that a process gets at once
ORIGINAL_LABEL_BASE = 1

_log = logging.getLogger(__name__)


def adopt_shards(
    directory: str | Path,
    label_base: int | None = None,
    workers: int = 1,
    progress: Progress = silent,
    damaged: Mapping[str, Numbers] = MappingProxyType({}),
    only_plain: bool = False,
    checksums: bool = False,
) -> DatasetInfo:
    """Writes indexes, image sizes and dataset.json beside the shards of a folder.

    An existing dataset.json keeps its classes and its notes on the build. Shards with the same number of records and
    bytes as before keep their checksums and quarantine. Image sizes are read from the images; a warning counts the
    records whose features have other sizes. Another one counts the records whose image is no plain JPEG or is turned
    by its EXIF orientation: the builder would encode them again. A split without labels is left out, with a warning.

    Args:
        directory: the folder, with shards named as in `pipelines.shards.shard_names`.
        label_base: the label of the first class. None takes it from an existing dataset.json; without one it is 0 if a
            record has label 0, else 1, as in the original project's shards.
        workers: number of processes.
        progress: called with the number of shards done.
        damaged: shard name -> records to quarantine; they may be unreadable.
        only_plain: quarantine the records that the builder would encode again.
        checksums: compute the checksum of each shard, for which all bytes are read; else a known one is kept.

    Returns:
        The content of dataset.json.

    Raises:
        UserError: the folder is in use or has an unfinished build, a shard is missing, a record cannot be read, or
            labels or class names contradict each other.
    """
    directory = user_path(directory).absolute()
    with owned(directory) if directory.is_dir() else nullcontext():
        return _adopt(directory, label_base, workers, progress, damaged, only_plain, checksums)


def _adopt(
    directory: Path,
    label_base: int | None,
    workers: int,
    progress: Progress,
    damaged: Mapping[str, Numbers],
    only_plain: bool,
    checksums: bool,
) -> DatasetInfo:
    check_finished(directory)
    splits = find_shards(directory)
    known = DatasetInfo.load(directory) if (directory / DATASET_FILE).exists() else None
    told = read_format(directory, splits)
    splits = _labelled(directory, splits, told)
    features = known.features if known else told.features
    names = [name for shards in splits.values() for name in shards]
    before = known_shards(known) if known else {}
    clean_up(directory)
    tasks = []
    for name in names:
        shard, left_out = before.get(name, (None, frozenset()))
        lost = damaged.get(name, frozenset())
        tasks.append(ScanTask(directory / name, lost, shard, left_out, features, only_plain, checksums))
    try:
        scans = _index_shards(tasks, workers, progress)
        _warn_of_wrong_sizes(directory, scans)
        _warn_of_peculiar(directory, scans, only_plain)
        names_of = {split: {name: scans[name].names for name in shards} for split, shards in splits.items()}
        if found := find_contradiction(names_of):
            raise UserError(
                found.what, path=directory / found.file, remedy="write the shards again with the same labels"
            )
        labels = np.unique(np.concatenate([np.unique(scan.labels) for scan in scans.values()]))
        classes, base = _classes(directory, labels[labels != NO_LABEL], merged(names_of), known, label_base, told)
        info = DatasetInfo(
            label_base=base,
            classes=classes,
            splits={
                split: _split_info(directory, split, [scans[name] for name in shards])
                for split, shards in splits.items()
            },
            features=features,
            build=known.build if known else {},
        )
        info.save(directory)
    except OSError as error:
        remedy = "remove it" if isinstance(error, NotRegular) else ""
        raise UserError(reason(error), path=error.filename or directory, remedy=remedy) from None
    if what := passed_over(directory):
        _log.warning("%s: %s", directory, what)
    _warn_of_sorted(directory, info)
    return info


def _labelled(directory: Path, splits: Mapping[str, list[str]], told: RecordFormat) -> dict[str, list[str]]:
    """The splits whose records have labels; the others are named."""
    left = {split: names for split, names in splits.items() if split not in told.unlabelled}
    if not left:
        what = f"the records have no labels ({told.features.label} is -1)"
        raise UserError(what, path=directory, remedy="training needs shards with labels")
    for split in told.unlabelled:
        _log.warning("%s: the %s shards are left out: their records have no labels (-1)", directory, split)
    return left


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


def _warn_of_peculiar(directory: Path, scans: Mapping[str, ShardScan], only_plain: bool) -> None:
    """Counts the records that the builder would encode again, by reason, and says what can be done."""
    found = [(name, number, what) for name, scan in sorted(scans.items()) for number, what in scan.peculiar.items()]
    if not found:
        return
    counts = Counter(what for *_, what in found)
    reasons = ", ".join(f"{what} ({count:,})" for what, count in sorted(counts.items()))
    name, number, _ = found[0]
    noun = "1 record is" if len(found) == 1 else f"{len(found):,} records are"
    what = f"{noun} no plain upright JPEG: {reasons}; the first is record {number} of {name}"
    if only_plain:
        _log.warning("%s: %s; they are quarantined", directory, what)
        return
    why = "no loader turns images, tfdata reads only JPEG, and CMYK differs between loaders"
    build = (
        f"build shards from these, which encodes such images again, with {remedies.build_shards(directory, 'SHARDS')}"
    )
    leave = f"leave such records out with `{remedies.command('build_index', directory, '--quarantine')}`"
    _log.warning("%s: %s; %s: %s; or %s", directory, what, why, build, leave)


def _warn_of_sorted(directory: Path, info: DatasetInfo) -> None:
    for split, part in info.splits.items():
        if part.is_sorted and split != "validation":
            found = f"{RUN_RECORDS} neighbours have {part.mixing:.0%} of the classes of shuffled ones"
            what = "training reads small blocks from many places to mix them; shards of build_shards need less memory"
            _log.warning("%s: the %s shards are sorted by class (%s); %s", directory, split, found, what)


def _classes(
    directory: Path,
    labels: np.ndarray,
    names: Numbering,
    known: DatasetInfo | None,
    label_base: int | None,
    told: RecordFormat,
) -> tuple[list[ClassInfo], int]:
    """The classes in label order and the label base. `labels` and `names` are those of all records."""
    if not len(labels):
        raise UserError("every record is quarantined", path=directory, remedy="build the shards again")
    lowest, highest = int(labels.min()), int(labels.max())
    if told.classes and not known:
        return _told_classes(directory, told.classes, highest, label_base)
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


def _told_classes(
    directory: Path, classes: Sequence[ClassInfo], highest: int, label_base: int | None
) -> tuple[list[ClassInfo], int]:
    """The classes that the files beside the shards name."""
    if label_base not in (None, TFDS_LABEL_BASE):
        what = f"the data set's own files number its classes from {TFDS_LABEL_BASE}, not from {label_base}"
        remedy = f"choose the label base {TFDS_LABEL_BASE}"
        raise UserError(what, path=directory, remedy=remedy, setting="label_base")
    if highest >= len(classes):
        what = f"a record has label {highest}, but the data set's own files name {len(classes)} classes"
        raise UserError(what, path=directory, remedy="copy the shards and these files from the same data set")
    return list(classes), TFDS_LABEL_BASE


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
