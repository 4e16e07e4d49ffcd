"""How does it scale? Loaders with threads; the plan of an epoch with records and shards, in seconds and memory."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from bench import decode
from bench.measurement import Measurement
from bench.memory import reset_peak, resident_megabytes
from bench.settings import Settings
from bench.timing import rates, ratios, run_interleaved
from pipelines import AugmentSpec, BatchSpec, EpochPlan, ShardSet
from pipelines.shards.dataset import shard_name
from pipelines.stream import Segment
from pipelines.system.processes import cpu_count

IMAGENET_RECORDS = 1_280_000
RECORDS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
SHARDS = (1, 4, 16, 64, 256, 1024)
HUGE = 100_000_000, 1000  # records, shards: too many for a plan that is made as a whole
_FIRST_STEPS, _LATER_STEPS = 192, 1024  # of a stream's first segment, and of its longest


Cost = TypeVar("Cost")


class PlanCost(NamedTuple):
    """What a plan costs.

    Attributes:
        order_seconds: to compute the order of the records.
        write_seconds: to draw the augmentations and to write the plan for DALI.
        megabytes: the peak memory of both.
    """

    order_seconds: float
    write_seconds: float
    megabytes: float


class SegmentCost(NamedTuple):
    """What the plan of a part of an epoch costs.

    Attributes:
        first_seconds: until the first segment of an epoch is written, from the start of the epoch.
        records_per_second: of long segments, planned and written.
        megabytes: the peak memory.
    """

    first_seconds: float
    records_per_second: float
    megabytes: float


def measure(settings: Settings) -> Iterator[Measurement]:
    """Measures loaders by threads, then plans, each in a new process."""
    yield from _threads(settings)
    counts = RECORDS[:-2] if settings.short else RECORDS
    yield from _plans(settings, [(records, max(1, records // 1250)) for records in counts])
    if not settings.short:
        yield from _plans(settings, [(IMAGENET_RECORDS, shards) for shards in SHARDS])
        yield from _segments(settings, *HUGE)


def thread_counts(cores: int) -> list[int]:
    """The powers of two up to the number of cores, and the number of cores itself."""
    return sorted({*(2**k for k in range(cores.bit_length()) if 2**k <= cores), cores})


def _threads(settings: Settings) -> Iterator[Measurement]:
    for workers in thread_counts(cpu_count()):
        these = settings.replace(workers=workers)
        candidates = [decode.limit(these)]
        candidates += [these.candidate(name, name, "full") for name in these.loaders if name != "synthetic"]
        samples = run_interleaved(candidates, these.rounds, these.seconds)
        stamp = these.stamp(augment="full", dtype="float32")
        yield from rates("scaling", samples, stamp)
        yield from ratios("scaling", samples, decode.LIMIT, stamp)


def _plans(settings: Settings, cases: Sequence[tuple[int, int]]) -> Iterator[Measurement]:
    for records, shards in cases:
        costs = [_in_new_process(plan_cost, records, shards) for _ in range(1 if settings.short else settings.rounds)]
        yield from _columns(
            f"plan of {records:,} records in {shards:,} shards",
            {
                ("order", "s"): [cost.order_seconds for cost in costs],
                ("augmentations drawn and files written for DALI", "s"): [cost.write_seconds for cost in costs],
                ("memory", "MB"): [cost.megabytes for cost in costs],
            },
            {"records": records, "shards": shards},
        )


def _segments(settings: Settings, records: int, shards: int) -> Iterator[Measurement]:
    costs = [_in_new_process(segment_cost, records, shards) for _ in range(settings.rounds)]
    yield from _columns(
        f"plan of {records:,} records in {shards:,} shards, by segments",
        {
            ("first segment", "s"): [cost.first_seconds for cost in costs],
            ("drawn and written", "records/s"): [cost.records_per_second for cost in costs],
            ("memory", "MB"): [cost.megabytes for cost in costs],
        },
        {"records": records, "shards": shards},
    )


def _columns(name: str, columns: dict[tuple[str, str], list[float]], stamp: dict[str, object]) -> Iterator[Measurement]:
    """A measurement for each (what, unit), with the value of each round."""
    for (what, unit), rounds in columns.items():
        yield Measurement("scaling", f"{name}: {what}", unit, tuple(rounds), stamp)


def _in_new_process(function: Callable[[int, int], Cost], records: int, shards: int) -> Cost:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, records, shards).result()


def plan_cost(records: int, shards: int) -> PlanCost:
    """Measures the plan of the first epoch of a made-up shard set in this process.

    Args:
        records: records of the shard set.
        shards: number of shards.

    Returns:
        The cost, without that of the shard set itself.
    """
    shard_set = made_up_shards(records, shards)
    reset_peak()
    before = resident_megabytes()
    start = time.perf_counter()
    plan = EpochPlan(shard_set, AugmentSpec.train(), batch_size=64, image_size=224)
    plan.records  # noqa: B018 computed on first use
    ordered = time.perf_counter()
    _write(Segment.whole(plan))
    written = time.perf_counter()
    return PlanCost(ordered - start, written - ordered, resident_megabytes("VmHWM") - before)


def segment_cost(records: int, shards: int) -> SegmentCost:
    """Measures segments of the first epoch of a made-up shard set in this process, without the shard set itself."""
    shard_set = made_up_shards(records, shards)
    reset_peak()
    before = resident_megabytes()
    start = time.perf_counter()
    plan = EpochPlan(shard_set, AugmentSpec.train(), batch_size=64, image_size=224)
    _write(Segment(plan, 0, _FIRST_STEPS))
    first = time.perf_counter()
    count = 2
    for number in range(count):
        _write(Segment(plan, _FIRST_STEPS + number * _LATER_STEPS, _LATER_STEPS))
    rate = count * _LATER_STEPS * plan.batch_size / (time.perf_counter() - first)
    return SegmentCost(first - start, rate, resident_megabytes("VmHWM") - before)


def _write(segment: Segment) -> None:
    from pipelines.loaders.dali.plan_files import write_plan
    from pipelines.loaders.dali.plan_folder import make_folder

    with make_folder(segment.positions * 4096) as folder:
        write_plan(segment, BatchSpec(64, 224), Path(folder))


def made_up_shards(records: int, shards: int) -> ShardSet:
    """A shard set without files, with images and records of about the same sizes as ImageNet's."""
    rng = np.random.default_rng(0)
    shard = np.sort(np.arange(records, dtype=np.int32) % shards)
    lengths = rng.integers(50_000, 170_000, records)
    ends = np.cumsum(lengths)
    first = np.searchsorted(shard, np.arange(shards))
    return ShardSet(
        split="train",
        paths=tuple(Path("/nowhere", shard_name("train", number, shards)) for number in range(shards)),
        shard=shard,
        offsets=ends - lengths - (ends - lengths)[first][shard],
        lengths=lengths,
        sizes=rng.integers(300, 600, (records, 2), dtype=np.int32),
        usable=np.arange(records),
        classes=("a", "b"),
        label_base=0,
    )
