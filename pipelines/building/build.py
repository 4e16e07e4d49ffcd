"""A source of images becomes shards, indexes, image sizes and dataset.json.

The plan comes first: a seeded shuffle of each split, cut into shards whose sizes differ by one at most. Each shard is
then a pure function of its own list of images, so shards are written by many processes, and a build that was stopped
goes on where it was: finished shards are known by a small note in the folder `.build`, which the last step removes.
dataset.json is written last; a folder without it holds no data set.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL

from pipelines.building.shard_writer import (
    LABEL_BASE,
    STATE_FOLDER,
    ShardResult,
    ShardTask,
    digest,
    finished,
    write_shard,
)
from pipelines.building.sources import WHOLE_FILE, Entry, Rejected, Source
from pipelines.errors import UserError
from pipelines.shards.dataset import DATASET_FILE, DatasetInfo, ShardInfo, SplitInfo, shard_name
from pipelines.shards.shard_set import write_sizes
from pipelines.system.files import remove_leftovers, write_atomic
from pipelines.system.processes import run_tasks
from pipelines.system.progress import Progress, silent

MIN_RECORDS_PER_SHARD = 64
REJECTED_FILE = "rejected.jsonl"
_PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class BuildOptions:
    """How shards are made. The same source and options give the same bytes, whatever the number of workers.

    Attributes:
        train_shards, validation_shards: how many are wanted; a shard gets MIN_RECORDS_PER_SHARD images or more.
        short_side: larger images are shrunk to this shorter side, pixels; None keeps them.
        quality: JPEG quality of images that are encoded anew.
        seed: of the shuffle.
    """

    train_shards: int = 1024
    validation_shards: int = 128
    short_side: int | None = None
    quality: int = 95
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train_shards", "validation_shards"):
            if not 1 <= getattr(self, name) <= 99999:
                raise UserError(f"--{name.replace('_', '-')} must be 1 to 99999, not {getattr(self, name)}")
        if self.short_side is not None and self.short_side < 1:
            raise UserError(f"--short-side must be at least 1, not {self.short_side}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality must be 1 to 100, not {self.quality}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, not {self.seed}")

    def num_shards(self, split: str, images: int) -> int:
        """How many shards `images` images of a split are cut into."""
        wanted = {"train": self.train_shards, "validation": self.validation_shards}[split]
        return max(1, min(wanted, images // MIN_RECORDS_PER_SHARD))


@dataclass(frozen=True)
class BuildReport:
    """What a build did: the dataset.json it wrote, the files it rejected, how many images it encoded anew and why."""

    info: DatasetInfo
    rejected: tuple[Rejected, ...]
    reencoded: dict[str, int]


def shuffled_shards(entries: Sequence[Entry], num_shards: int, seed: int) -> list[list[Entry]]:
    """A seeded global shuffle, cut into shards whose sizes differ by one at most."""
    order = np.random.default_rng(seed).permutation(len(entries))
    return [[entries[i] for i in part.tolist()] for part in np.array_split(order, num_shards)]


def rebalanced(shards: list[list[Entry]]) -> list[list[Entry]]:
    """The same entries in shards whose sizes differ by one at most; as few as possible change their shard."""
    total, count = sum(map(len, shards)), len(shards)
    # The longest shards keep the odd ones, so that fewer have to move.
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
    """Builds a data set into the folder `output`, which must be new, empty or an unfinished build of the same.

    Files that cannot be decoded are left out and listed in rejected.jsonl. Raises `UserError` if the folder
    holds something else, cannot be written, or too few images can be decoded.
    """
    output = Path(output).expanduser().absolute()
    rejected = list(source.rejected)
    reencoded: Counter[str] = Counter()
    splits: dict[str, SplitInfo] = {}
    try:
        _prepare(output, source, options)
        for split in source.splits:
            results, lost = _build_split(source, split, output, options, workers, progress)
            splits[split] = _split_info(output, split, results)
            rejected += lost
            for result in results:
                reencoded.update(result.reencoded)
        if rejected:
            lines = "".join(json.dumps(item._asdict()) + "\n" for item in rejected)
            write_atomic(output / REJECTED_FILE, lines.encode())
        made = {**asdict(options), "layout": source.layout, "reencoded": dict(sorted(reencoded.items()))}
        info = DatasetInfo(
            label_base=LABEL_BASE,
            classes=list(source.classes),
            splits=splits,
            build={**made, "rejected": len(rejected)},
        )
        info.save(output)
    except OSError as error:
        what = f"{output}: {error.strerror or error}"
        raise UserError(f"{what}; finished shards are kept, the same command goes on from there") from None
    shutil.rmtree(output / STATE_FOLDER, ignore_errors=True)
    return BuildReport(info, tuple(rejected), made["reencoded"])


def scratch_folder(output: Path) -> Path:
    """Where a source may keep files while `output` is built."""
    return output / STATE_FOLDER / "source"


def check_output(output: Path) -> None:
    """Raises `UserError` unless the folder is new, empty or holds an unfinished build."""
    if (output / DATASET_FILE).exists():
        raise UserError(f"{output}: holds a data set already; give another --output or remove the folder")
    if not output.exists() or (output / STATE_FOLDER / _PLAN_FILE).exists():
        return
    if any(path.name != STATE_FOLDER for path in output.iterdir()):
        raise UserError(f"{output}: the folder is not empty; give another --output")


def _prepare(output: Path, source: Source, options: BuildOptions) -> None:
    """Makes the folder, or makes sure that an unfinished build in it is this one."""
    plan = {
        "options": asdict(options),
        "source": digest(repr(tuple(entry)) for entries in source.splits.values() for entry in entries),
        "tars": digest(_tars(source)),
        "classes": digest(f"{item.wnid} {item.name}" for item in source.classes),
        "pillow": PIL.__version__,
    }
    state = output / STATE_FOLDER
    check_output(output)
    if (state / _PLAN_FILE).exists():
        if json.loads((state / _PLAN_FILE).read_text(encoding="utf-8")) != plan:
            raise UserError(
                f"{output}: holds an unfinished build of other images or options; repeat that one or remove the folder"
            )
        remove_leftovers(output)
        remove_leftovers(state)
        return
    state.mkdir(parents=True, exist_ok=True)
    write_atomic(state / _PLAN_FILE, json.dumps(plan, indent=1).encode())


def _tars(source: Source) -> list[str]:
    """Each tar that images lie in, with size and time: another tar has other bytes at the same offsets."""
    files = {entry.place.file for entries in source.splits.values() for entry in entries if entry.offset != WHOLE_FILE}
    stats = [(file, os.stat(file)) for file in sorted(files)]
    return [f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats]


def _build_split(
    source: Source,
    split: str,
    output: Path,
    options: BuildOptions,
    workers: int,
    progress: Progress,
) -> tuple[list[ShardResult], list[Rejected]]:
    """Writes all shards of a split; their results in order, and the files that are in none of them."""
    entries = source.splits[split]
    count = options.num_shards(split, len(entries))
    shards = shuffled_shards(entries, count, options.seed)
    rejected: list[Rejected] = []
    while True:
        tasks = [
            ShardTask(
                output / shard_name(split, i, count), tuple(shard), source.classes, options.short_side, options.quality
            )
            for i, shard in enumerate(shards)
        ]
        results = _run(tasks, workers, partial(progress, f"{split} shards"))
        if not any(result.rejected for result in results):
            return results, sorted(rejected)
        # Shards that lost images are filled up from others and written once more, so that sizes stay balanced.
        shards = []
        for task, result in zip(tasks, results, strict=True):
            lost = dict(result.rejected)
            rejected += [Rejected(split, task.entries[i].path, reason) for i, reason in lost.items()]
            shards.append([entry for i, entry in enumerate(task.entries) if i not in lost])
        if sum(map(len, shards)) < count:
            rejected.sort()
            what = f"{len(rejected):,} of {len(entries):,} {split} images cannot be decoded"
            raise UserError(f"{source.root}: {what}; the first is {rejected[0].path}: {rejected[0].reason}")
        shards = rebalanced(shards)


def _run(tasks: list[ShardTask], workers: int, progress: Callable[[int, int], None]) -> list[ShardResult]:
    """Writes the shards that are not there yet; the results in the order of the tasks."""
    images = {task.path.name: len(task.entries) for task in tasks}
    results = {task.path.name: result for task in tasks if (result := finished(task))}
    done, total = sum(images[name] for name in results), sum(images.values())
    progress(done, total)
    for result in run_tasks(write_shard, [task for task in tasks if task.path.name not in results], workers):
        results[result.name] = result
        done += images[result.name]
        progress(done, total)
    return [results[task.path.name] for task in tasks]


def _split_info(output: Path, split: str, results: list[ShardResult]) -> SplitInfo:
    sizes = f"{split}-sizes.npy"
    write_sizes(output / sizes, np.concatenate([np.array(result.sizes, np.int32) for result in results]))
    shards = [ShardInfo(file=r.name, records=len(r.sizes), bytes=r.bytes, crc32c=r.crc32c) for r in results]
    return SplitInfo(shards=shards, sizes=sizes)
