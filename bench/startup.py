"""How long until the first batch? In a new loader, in a new process, in a resumed epoch, in the next epoch."""

import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from bench.measurement import Measurement
from bench.settings import Settings

IMAGENET_RECORDS = 1_281_167
_SHORT_RECORDS = 64_000
_PLANNED_PER_SECOND = 25_000  # the minimum of records, since plans are made slowly in the background

# A user's script, from the start of Python to the first batch.
_SCRIPT = """
from pipelines import AugmentSpec, BatchSpec, ShardSet, open_loader
shards = ShardSet.open({directory!r}, {split!r})
batch = BatchSpec({batch_size}, {image_size})
with open_loader({loader!r}, shards, batch, AugmentSpec.train(), workers={workers}, device={device!r}) as loader:
    next(iter(loader.epoch(0)))
"""


def measure(settings: Settings) -> Iterator[Measurement]:
    """Measures with as many records in an epoch as ImageNet has, because the plan takes time too."""
    records = _SHORT_RECORDS if settings.short else IMAGENET_RECORDS
    stamp = settings.stamp(augment="full", dtype="float32", records=records)
    for loader in (name for name in settings.loaders if name != "synthetic"):
        for name, unit, function in (
            ("first batch", "s", _first_batch),
            ("resume in the middle of an epoch", "s", _resume),
            ("epoch change", "batches", _epoch_change),
            ("rate while the next epoch is planned", "of the rate after", _rate_while_planning),
        ):
            rounds = tuple(function(settings, loader, records) for _ in range(settings.rounds))
            yield Measurement("startup", f"{loader}: {name}", unit, rounds, stamp)
        fresh = tuple(_fresh_process(settings, loader) for _ in range(1 if settings.short else settings.rounds))
        own_records = settings.stamp(augment="full", dtype="float32", records=settings.shards.num_records)
        yield Measurement("startup", f"{loader}: first batch of a fresh process", "s", fresh, own_records)


def _first_batch(settings: Settings, loader: str, records: int) -> float:
    start = time.perf_counter()
    with settings.open(loader, "full", records=records) as opened:
        next(iter(opened.epoch(0)))
        return time.perf_counter() - start


def _resume(settings: Settings, loader: str, records: int) -> float:
    start = time.perf_counter()
    with settings.open(loader, "full", records=records) as opened:
        next(iter(opened.epoch(1, opened.steps_per_epoch // 2)))
        return time.perf_counter() - start


def _epoch_change(settings: Settings, loader: str, records: int) -> float:
    """How much longer the first batch of an epoch takes than others, in units of the usual time of a batch.

    As in training, the end of the epoch comes long after its start, so that the next plan is ready.
    """
    with settings.open(loader, "full", records=records) as opened:
        tail = min(opened.steps_per_epoch, _steps_of_planning(settings, records))
        marks: list[float] = []
        for _ in opened.batches(0, opened.steps_per_epoch - tail):
            if not marks:
                time.sleep(records / _PLANNED_PER_SECOND)
            marks.append(time.perf_counter())
        usual = float(np.median(np.diff(marks[len(marks) // 2 :])))
        following = opened.batches(1)  # kept, so that the time does not include its end
        next(following)
        return (time.perf_counter() - marks[-1]) / usual - 1


def _rate_while_planning(settings: Settings, loader: str, records: int) -> float:
    """The rate right after the start of an epoch, while the next one is planned, over the rate when that is done."""
    with settings.open(loader, "full", records=records) as opened:
        steps = _steps_of_planning(settings, records)
        batches = iter(opened.epoch(0))

        def seconds() -> float:
            for _ in range(settings.prefetch + 2):
                next(batches)
            start = time.perf_counter()
            for _ in range(steps):
                next(batches)
            return time.perf_counter() - start

        while_planning = seconds()
        time.sleep(records / _PLANNED_PER_SECOND)
        return seconds() / while_planning


def _steps_of_planning(settings: Settings, records: int) -> int:
    """Enough steps that the next plan is ready, on machines that read some hundred to some thousand images/s."""
    return -(-1000 * (2 + records // 200_000) // settings.batch_size)


def _fresh_process(settings: Settings, loader: str) -> float:
    script = _SCRIPT.format(
        directory=str(settings.shards.paths[0].parent),
        split=settings.shards.split,
        loader=loader,
        batch_size=min(settings.batch_size, len(settings.shards.usable)),
        image_size=settings.image_size,
        workers=settings.workers,
        device=settings.device,
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start
