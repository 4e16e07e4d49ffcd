"""How fast are shards built, indexed and checked? Compared with decoding, the original builder and tfrecord2idx."""

import itertools
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from bench import decode, original_builder
from bench.measurement import Measurement
from bench.memory import resident_megabytes
from bench.reading import read_bytes
from bench.settings import Settings
from bench.timing import Sample, Turn, cpu_seconds, rates, ratios, run_turns, turn_of
from pipelines.building.adopt import adopt_shards
from pipelines.building.check import check_tasks
from pipelines.building.shard_checker import CheckTask, ShardCheck, check_shard
from pipelines.building.shard_writer import STATE_FOLDER, ShardResult, ShardTask, write_shard
from pipelines.building.sources import Entry, Place
from pipelines.shards.dataset import ClassInfo, DatasetInfo, shard_name
from pipelines.shards.index import scan
from pipelines.system.processes import run_tasks

_SHARD_IMAGES, _SHARDS = 128, 16
_BATCH = 4  # shards for each worker; enough that no worker waits long for the others
_TOOL_SHARDS = 2  # few for tfrecord2idx, which takes seconds to start
_MEMORY_SHARDS = 12  # in each twelfth of the long build
BUILDER, ORIGINAL = "build_shards", "the original's builder"
INDEXER, TOOL = "build_index", "tfrecord2idx"


def measure(settings: Settings) -> Iterator[Measurement]:
    """Measures builders and checkers against the decode limit, indexers, and memory during a long build."""
    with tempfile.TemporaryDirectory(prefix="kimagenet-bench-") as name:
        folder = Path(name)
        entries = extract_images(settings, folder / "images")
        yield from _against_limit(settings, entries, folder)
        yield from _indexers(settings, folder)
        yield from _memory(settings, entries, folder)


def extract_images(settings: Settings, folder: Path) -> list[Entry]:
    """Writes the JPEGs of the shards as separate files, which a builder reads.

    Args:
        settings: its shards are read.
        folder: the files are written into it.

    Returns:
        The entry of each file.
    """
    folder.mkdir(exist_ok=True)
    place = Place(str(folder), "")
    entries = []
    for number, jpeg in enumerate(decode.find_jpegs(settings.shards, _SHARDS * _SHARD_IMAGES)):
        entries.append(Entry(place, f"{number}.JPEG", 0))
        (folder / entries[-1].name).write_bytes(read_bytes(*jpeg))
    return entries


def _against_limit(settings: Settings, entries: list[Entry], folder: Path) -> Iterator[Measurement]:
    limit, workers = decode.limit(settings), settings.workers
    build, check = shard_tasks(entries, folder / "built"), _check_tasks(settings)
    fast = [replace(task, decode=False) for task in check]
    with ExitStack() as stack:
        stream = stack.enter_context(closing(limit.open()))
        processes = stack.enter_context(ProcessPoolExecutor(workers, get_context("spawn")))
        threads = stack.enter_context(ThreadPoolExecutor(workers))
        turns: dict[str, Turn] = {
            limit.name: turn_of(stream, limit.buffered),
            BUILDER: partial(_turn, processes, write_shard, build, _BATCH * workers),
            ORIGINAL: partial(_turn, threads, original_builder.write_shard, build, _BATCH * workers),
            "check_shards": partial(_turn, processes, check_shard, check, _BATCH * workers),
            "check_shards --fast": partial(_turn, processes, check_shard, fast, _BATCH * workers),
        }
        for turn in turns.values():
            turn(0.0)  # starts processes and TensorFlow; their start is negligible in a real build
        samples = run_turns(turns, settings.rounds, settings.seconds)
    yield from rates("build", samples, settings.stamp())
    yield from ratios("build", samples, decode.LIMIT, settings.stamp())
    builders = {name: samples[name] for name in (BUILDER, ORIGINAL)}
    yield from ratios("build", builders, ORIGINAL, settings.stamp())


def shard_tasks(entries: Sequence[Entry], folder: Path) -> list[ShardTask]:
    """Tasks that write shards of equal size; images repeat if there are too few.

    Args:
        entries: the images.
        folder: for the shards; it must not exist.
    """
    (folder / STATE_FOLDER).mkdir(parents=True)
    images = itertools.cycle(entries)
    return [
        ShardTask(
            folder / shard_name("train", number, _SHARDS),
            tuple(itertools.islice(images, _SHARD_IMAGES)),
            (ClassInfo(name="any"),),
            None,
            95,
        )
        for number in range(_SHARDS)
    ]


def _check_tasks(settings: Settings) -> list[CheckTask]:
    directory, names = settings.shards.paths[0].parent, {path.name for path in settings.shards.paths}
    tasks, _ = check_tasks(directory, DatasetInfo.load(directory), decode=True)
    return [task for task in tasks if task.path.name in names]


def _turn(
    pool: Executor, work: Callable[[Any], ShardResult | ShardCheck], tasks: Sequence[Any], batch: int, seconds: float
) -> Sample:
    """Runs batches of tasks on all workers. Each batch is completed, so that the pool is idle between turns."""
    waiting = itertools.cycle(tasks)
    images = 0
    before, start = cpu_seconds(), time.perf_counter()
    while not images or time.perf_counter() - start < seconds:
        for result in pool.map(work, itertools.islice(waiting, batch)):
            images += len(result.sizes) if isinstance(result, ShardResult) else result.records
    return Sample(images, time.perf_counter() - start, cpu_seconds() - before)


def _indexers(settings: Settings, folder: Path) -> Iterator[Measurement]:
    """Records per second, start of processes included, for shards that are not in the page cache."""
    linked = folder / "linked"
    linked.mkdir()
    for path in settings.shards.paths:
        (linked / path.name).symlink_to(path)
    paths = sorted(linked.iterdir())
    index = linked / "tool.idx"
    turns: dict[str, Turn] = {
        INDEXER: partial(_index_turn, lambda: adopt_shards(linked, workers=settings.workers), paths),
    }
    if (tool := Path(sys.executable).with_name(TOOL)).exists():
        few = paths[:_TOOL_SHARDS]
        turns[TOOL] = partial(_index_turn, partial(_start, tool, few, index), few)
        turns[f"{TOOL} without its start"] = partial(_index_turn, partial(_call, tool, paths, index), paths)
    samples = run_turns(turns, settings.rounds, settings.seconds)
    for name, sampled in samples.items():
        stamp = settings.stamp(page_cache="cold")
        yield Measurement("build", name, "records/s", tuple(sample.rate for sample in sampled), stamp)
        yield Measurement("build", name, "CPU ms/record", tuple(sample.cpu_ms for sample in sampled), stamp)
        if name != INDEXER:
            yield from ratios("build", {INDEXER: samples[INDEXER], name: sampled}, name, stamp)


def _index_turn(work: Callable[[], object], paths: Sequence[Path], seconds: float) -> Sample:
    """One pass over the shards; `seconds` has no effect."""
    records = sum(scan(path).num_records for path in paths)
    for path in paths:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())  # dirty pages would stay in the cache
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start, before = time.perf_counter(), _cpu_seconds()
    work()
    return Sample(records, time.perf_counter() - start, _cpu_seconds() - before)


def _cpu_seconds() -> float:
    """CPU time of this process and of its child processes that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _start(tool: Path, shards: Sequence[Path], index: Path) -> None:
    """Runs tfrecord2idx as in DALI's documentation: one process for each shard."""
    for shard in shards:
        subprocess.run([sys.executable, tool, shard, index], check=True, capture_output=True)


def _call(tool: Path, shards: Sequence[Path], index: Path) -> None:
    """Runs tfrecord2idx in this process, in which TensorFlow is already imported."""
    for shard in shards:
        with patch.object(sys, "argv", [str(tool), str(shard), str(index)]):
            runpy.run_path(str(tool), run_name="__main__")


def _memory(settings: Settings, entries: list[Entry], folder: Path) -> Iterator[Measurement]:
    """The peak memory of all workers together in each twelfth of a long build; a round is a twelfth."""
    shards = 12 * (2 if settings.short else _MEMORY_SHARDS)
    tasks = itertools.islice(itertools.cycle(shard_tasks(entries, folder / "long")), shards)
    held = [
        sum(resident_megabytes(pid=child.pid) for child in active_children())
        for _ in run_tasks(write_shard, list(tasks), settings.workers)
    ]
    rounds = tuple(max(part) for part in np.array_split(held, 12))
    stamp = settings.stamp(images=shards * _SHARD_IMAGES)
    yield Measurement("build", f"{BUILDER}: memory of the workers by twelfth", "MB", rounds, stamp)
