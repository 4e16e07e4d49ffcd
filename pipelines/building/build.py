"""Builds shards, indexes, image sizes and dataset.json from a source of images.

First the images of each split are shuffled with a seed and cut into shards whose sizes differ by at most one. Each
shard is a pure function of its list of images. So many processes can write shards at once, and a stopped build
continues where it stopped: the folder `.build` has a small note for each finished shard. dataset.json is written after
all shards; a folder without it is not a data set.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from pipelines.building.leftovers import PLAN_FILE, STATE_FOLDER, clean_up
from pipelines.building.mixing import mixing
from pipelines.building.options import BuildOptions, as_planned, decide, samples_of
from pipelines.building.shard_writer import (
    LABEL_BASE,
    ShardResult,
    ShardTask,
    digest,
    finished,
    unchanged,
    write_shard,
)
from pipelines.building.sources import Entry, RejectedFile, Source
from pipelines.errors import UserError, reason
from pipelines.shards.dataset import DATASET_FILE, DatasetInfo, ShardInfo, SplitInfo, shard_name
from pipelines.shards.shard_set import write_sizes
from pipelines.system.ahead import read_ahead
from pipelines.system.files import remove_leftovers, user_path, write_atomic
from pipelines.system.lock import LOCK_FILE, owned
from pipelines.system.processes import run_tasks
from pipelines.system.progress import Progress, silent
from pipelines.system.reading import read_file
from pipelines.uniform import RecordUniform

REJECTED_FILE = "rejected.jsonl"
_STAT_THREADS = 16  # a network file system answers many requests at once
_FIRST_SHUFFLE, _SHUFFLE = 1, 2  # versions of the shuffle; the first one is of NumPy's generator
_SHUFFLE_COLUMN = 1 << 21  # of random numbers, far from those of a plan

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildReport:
    """The result of a build.

    Attributes:
        info: the content of dataset.json.
        rejected: the files that did not become records.
        reencoded: the number of images that were encoded again, by reason.
    """

    info: DatasetInfo
    rejected: tuple[RejectedFile, ...]
    reencoded: dict[str, int]


def shuffled_shards(entries: Sequence[Entry], num_shards: int, seed: int, version: int = _SHUFFLE) -> list[list[Entry]]:
    """Shuffles all entries with a seed and cuts them into shards whose sizes differ by at most one."""
    if version == _FIRST_SHUFFLE:
        order = np.random.default_rng(seed).permutation(len(entries))
    else:
        bits = RecordUniform(seed, 0, np.arange(len(entries))).bits(_SHUFFLE_COLUMN)
        order = np.argsort(bits, kind="stable")
    return [[entries[i] for i in part.tolist()] for part in np.array_split(order, num_shards)]


def rebalanced(shards: list[list[Entry]]) -> list[list[Entry]]:
    """The same entries in shards whose sizes differ by at most one; as few entries as possible change their shard."""
    total, count = sum(map(len, shards)), len(shards)
    # The longest shards get one entry more, so that fewer entries move.
    longest_first = sorted(range(count), key=lambda i: (-len(shards[i]), i))
    targets = {i: total // count + (rank < total % count) for rank, i in enumerate(longest_first)}
    spare = [entry for i, shard in enumerate(shards) for entry in shard[targets[i] :]]
    balanced = []
    for i, shard in enumerate(shards):
        missing = max(0, targets[i] - len(shard))
        balanced.append(shard[: targets[i]] + spare[:missing])
        spare = spare[missing:]
    return balanced


def build(
    source: Source, output: str | Path, options: BuildOptions, workers: int = 1, progress: Progress = silent
) -> BuildReport:
    """Builds a data set. Files that cannot be decoded are left out and listed in rejected.jsonl.

    Args:
        source: the images and their classes.
        output: the folder to write; new, empty, or an unfinished build of the same source and options.
        options: how shards are made.
        workers: number of processes.
        progress: called with the number of images done.

    Returns:
        What was built, rejected and encoded again.

    Raises:
        UserError: the folder contains something else, cannot be written or is in use, or too few images can be decoded.
    """
    output = user_path(output).absolute()
    with owned(output, "output"):
        finish(output, source.root, options)
        options = as_planned(options, unfinished_plan(output))
        if not options.is_decided:
            options = decide(options, source, samples_of(source, options))
        return _build(source, output, options, workers, progress)


def _build(source: Source, output: Path, options: BuildOptions, workers: int, progress: Progress) -> BuildReport:
    rejected = list(source.rejected)
    reencoded: Counter[str] = Counter()
    splits: dict[str, SplitInfo] = {}
    try:
        shuffle = _prepare(output, source, options)
        for split in source.splits:
            results, lost, mixed = _build_split(source, split, output, options, shuffle, workers, progress)
            splits[split] = _split_info(output, split, results, mixed)
            rejected += lost
            for result in results:
                reencoded.update(result.reencoded)
        _write_rejected(output / REJECTED_FILE, rejected)
        made = {**options.content(), "layout": source.layout, "reencoded": dict(sorted(reencoded.items()))}
        info = DatasetInfo(
            label_base=LABEL_BASE,
            classes=list(source.classes),
            splits=splits,
            build={**made, "rejected": len(rejected), "shuffle": shuffle},
        )
        remove_leftovers(output)  # a worker whose parent was killed may have left one after the last removal
        info.save(output)
        clean_up(output)
    except OSError as error:
        remedy = "fix this and repeat the same command; it keeps the finished shards"
        raise UserError(reason(error), path=error.filename or output, remedy=remedy) from None
    return BuildReport(info, tuple(rejected), made["reencoded"])


def finish(
    output: Path, root: Path, options: BuildOptions, packed: Mapping[str, Sequence[int]] | None = None
) -> BuildReport | None:
    """Ends a build that was stopped after it had written dataset.json, if its images need not be listed for this.

    The files that only builds need are removed if the build was of another source or other options: it is complete. A
    build of this source and these options is continued by `build`, which compares the images with those of the shards.

    Args:
        output: the folder of the build.
        root: the folder of the source.
        options: how shards are made.
        packed: path -> (size, modified) of the source's files, if all of them have to be unpacked: the build may have
            removed the copies, and these files say as well whether the images are the same.

    Returns:
        The result, if the build is complete; None if there is none, or it is to be continued, or it was another.

    Raises:
        OSError: a file cannot be read or removed.
        UserError: dataset.json is damaged, or the packed files have changed.
    """
    if not (output / DATASET_FILE).exists():
        return None
    state, plan = output / STATE_FOLDER, unfinished_plan(output)
    own = (plan.get("options"), plan.get("root")) == (as_planned(options, plan).content(), str(root.absolute()))
    if own and (packed is None or "packed" not in plan):
        return None
    if own and packed is not None and plan["packed"] != {path: list(stamp) for path, stamp in packed.items()}:
        raise _changed(output)
    was_there = state.exists()
    clean_up(output)
    if was_there:
        _log.warning("%s: removed; the build was stopped after its last shard, and is complete", state)
    if not own:
        return None
    info = DatasetInfo.load(output)
    return BuildReport(info, tuple(_read_rejected(output / REJECTED_FILE)), info.build.get("reencoded", {}))


def unfinished_plan(output: Path) -> dict[str, Any]:
    """The plan of the unfinished build in a folder; empty if there is none or it is damaged."""
    try:
        return json.loads(read_file(output / STATE_FOLDER / PLAN_FILE))
    except (OSError, ValueError):
        return {}


def _write_rejected(path: Path, rejected: Sequence[RejectedFile]) -> None:
    """Writes rejected.jsonl; a stopped build may have left one of files that are good now."""
    if rejected:
        write_atomic(path, "".join(json.dumps(item._asdict()) + "\n" for item in rejected).encode())
    else:
        path.unlink(missing_ok=True)


def _read_rejected(path: Path) -> list[RejectedFile]:
    lines = read_file(path).decode().splitlines() if path.exists() else []
    return [RejectedFile(**json.loads(line)) for line in lines]


def scratch_folder(output: Path) -> Path:
    """The folder for temporary files of a source while `output` is built."""
    return output / STATE_FOLDER / "source"


def check_output(output: Path) -> None:
    """Checks that a data set can be built into a folder.

    Raises:
        UserError: the folder has a data set or other files; an unfinished build is accepted.
    """
    if not output.exists() or (output / STATE_FOLDER / PLAN_FILE).exists():
        return
    if (output / DATASET_FILE).exists():
        remedy = "choose another output folder or remove this one"
        raise UserError("the folder already has a data set", path=output, remedy=remedy, setting="output")
    if any(path.name not in (STATE_FOLDER, LOCK_FILE) for path in output.iterdir()):
        raise UserError("the folder is not empty", path=output, remedy="choose another output folder", setting="output")


def _prepare(output: Path, source: Source, options: BuildOptions) -> int:
    """Makes the folder, or checks that the unfinished build in it has the same plan; the version of its shuffle."""
    plan = {
        "options": options.content(),
        "root": str(source.root.absolute()),
        # With the sizes and times of tars: in a tar that was replaced other bytes are at these offsets.
        "source": digest(repr(tuple(entry)) for entries in source.splits.values() for entry in entries),
        "classes": digest(f"{item.wnid} {item.name}" for item in source.classes),
        "pillow": PIL.__version__,
    }
    state = output / STATE_FOLDER
    check_output(output)
    if (state / PLAN_FILE).exists():
        known = unfinished_plan(output)
        shuffle = known.pop("shuffle", _FIRST_SHUFFLE)  # an earlier release did not write it
        known.pop("packed", None)  # the names of the copies have it
        if known != plan or shuffle not in (_FIRST_SHUFFLE, _SHUFFLE):
            if (output / DATASET_FILE).exists():
                raise _changed(output)
            raise UserError(
                "the folder has an unfinished build of other images or options",
                path=output,
                remedy="repeat the command of that build or remove the folder",
            )
        if (output / DATASET_FILE).exists():
            (output / DATASET_FILE).unlink()  # shards of changed images are written again
            _log.warning("%s: the build was stopped after its last shard; its source is compared again", output)
        remove_leftovers(output)
        remove_leftovers(state)
        return int(shuffle)
    state.mkdir(parents=True, exist_ok=True)
    written = {**plan, "packed": dict(source.packed), "shuffle": _SHUFFLE}
    write_atomic(state / PLAN_FILE, json.dumps(written, indent=1).encode())
    return _SHUFFLE


def _changed(output: Path) -> UserError:
    """The error that a data set whose build did not end is not of the images that are there now."""
    remedy = f"remove the folder to build it again, or {output / STATE_FOLDER} to keep the data set as it is"
    what = "the folder has a data set of this source, but the source's files, or Pillow's version, have changed since"
    return UserError(what, path=output, remedy=remedy, setting="output")


def _build_split(
    source: Source,
    split: str,
    output: Path,
    options: BuildOptions,
    shuffle: int,
    workers: int,
    progress: Progress,
) -> tuple[list[ShardResult], list[RejectedFile], float | None]:
    """Writes all shards of a split.

    Returns:
        The results in order, the files that could not be decoded, and how well the classes are mixed.
    """
    entries = source.splits[split]
    count = options.num_shards(split, len(entries))
    shards = shuffled_shards(entries, count, options.seed, shuffle)
    rejected: list[RejectedFile] = []
    while True:
        tasks = [
            ShardTask(
                output / shard_name(split, i, count), tuple(shard), source.classes, options.short_side, options.quality
            )
            for i, shard in enumerate(shards)
        ]
        results = _run(tasks, workers, partial(progress, f"{split} shards"))
        if not any(result.rejected for result in results):
            labels = [entry.class_index for task in tasks for entry in task.entries]
            return results, sorted(rejected), mixing(np.array(labels))
        # Shards that lost images get some from other shards and are written again, so that sizes stay balanced.
        shards = []
        for task, result in zip(tasks, results, strict=True):
            lost = dict(result.rejected)
            rejected += [RejectedFile(split, task.entries[i].path, reason) for i, reason in lost.items()]
            shards.append([entry for i, entry in enumerate(task.entries) if i not in lost])
        if sum(map(len, shards)) < count:
            rejected.sort()
            what = f"{len(rejected):,} of {len(entries):,} {split} images cannot be decoded"
            first = f"the first is {rejected[0].path}: {rejected[0].reason}"
            raise UserError(f"{what}, {first}", path=source.root, remedy="add images that can be decoded")
        shards = rebalanced(shards)


def _run(tasks: list[ShardTask], workers: int, progress: Callable[[int, int], None]) -> list[ShardResult]:
    """Writes the shards that are not finished. Returns the results in the order of the tasks."""
    images = {task.path.name: len(task.entries) for task in tasks}
    results = _finished(tasks)
    done, total = sum(images[name] for name in results), sum(images.values())
    progress(done, total)
    for result in run_tasks(write_shard, [task for task in tasks if task.path.name not in results], workers):
        results[result.name] = result
        done += images[result.name]
        progress(done, total)
    return [results[task.path.name] for task in tasks]


def _finished(tasks: Sequence[ShardTask]) -> dict[str, ShardResult]:
    """The results of shards that an earlier run finished, of images that have not changed since."""
    noted = zip(tasks, read_ahead(finished, tasks, _STAT_THREADS), strict=True)
    results = [(task, result) for task, result in noted if result]
    same = list(read_ahead(lambda pair: unchanged(*pair), results, _STAT_THREADS))
    if changed := [task for (task, _), kept in zip(results, same, strict=True) if not kept]:
        shards = "1 finished shard is" if len(changed) == 1 else f"{len(changed):,} finished shards are"
        _log.warning("%s: %s written again, because source files changed", changed[0].path.parent, shards)
    return {result.name: result for (_, result), kept in zip(results, same, strict=True) if kept}


def _split_info(output: Path, split: str, results: list[ShardResult], mixed: float | None) -> SplitInfo:
    """Writes the image sizes of a split. Returns its part of dataset.json."""
    sizes = f"{split}-sizes.npy"
    write_sizes(output / sizes, np.concatenate([np.array(result.sizes, np.int32) for result in results]))
    shards = [ShardInfo(file=r.name, records=len(r.sizes), bytes=r.bytes, crc32c=r.crc32c) for r in results]
    return SplitInfo(shards=shards, sizes=sizes, mixing=mixed)
