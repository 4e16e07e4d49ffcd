"""Runs a plan's DALI graph by itself, without TensorFlow: for checks and measurements."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.augment import AugmentSpec
from pipelines.loader import BatchSpec, LoaderOptions
from pipelines.loaders.dali.graph import build_graph
from pipelines.loaders.dali.host_time import dali_cpu_seconds
from pipelines.loaders.dali.plan_files import write_plan
from pipelines.plan import EpochPlan
from pipelines.shards.shard_set import ShardSet
from pipelines.stream import Segment


@dataclass(frozen=True)
class Rate:
    """What a pipeline did.

    Attributes:
        images: how many images it gave.
        seconds: wall time.
        cpu_seconds: CPU time of the whole process.
        dali_cpu_seconds: CPU time of DALI's threads.
    """

    images: int
    seconds: float
    cpu_seconds: float
    dali_cpu_seconds: float

    @property
    def images_per_second(self) -> float:
        """By wall time."""
        return self.images / self.seconds

    @property
    def dali_cpu_ms(self) -> float:
        """CPU milliseconds of DALI's threads per image."""
        return 1000 * self.dali_cpu_seconds / self.images


@contextmanager
def open_pipeline(
    shards: ShardSet,
    batch: BatchSpec,
    augment: AugmentSpec,
    options: LoaderOptions,
    *,
    whole_images: bool = False,
    native: bool = False,
    epoch: int = 0,
) -> Iterator[Any]:
    """A built pipeline of one epoch's plan. It starts again at its end.

    Args:
        shards: the data set.
        batch: shape and dtype.
        augment: what is drawn.
        options: device, threads, queues and decoder.
        whole_images: whether the CPU runs the graph of a GPU; a GPU always does.
        native: whether our CPU operator is used; it must be loaded.
        epoch: number of the epoch.
    """
    on_gpu = options.device == "gpu"
    plan = EpochPlan(shards, augment, batch.batch_size, batch.image_size, epoch=epoch)
    with tempfile.TemporaryDirectory(prefix="kimagenet-standalone-") as folder:
        files = write_plan(Segment.whole(plan), batch, Path(folder), whole_images=whole_images or on_gpu)
        pipeline = build_graph(
            files,
            batch,
            augment,
            shards.label_base,
            options,
            preallocate=options.decoder.preallocation(shards.sizes) if on_gpu else (0, 0),
            native=native,
            standalone=True,
        )
        pipeline.build()
        yield pipeline


def measure(pipeline: Any, batch_size: int, seconds: float, warm_up: float = 1.0) -> Rate:
    """Runs a pipeline for some seconds, after some seconds that do not count."""
    began = time.perf_counter()
    while time.perf_counter() - began < warm_up:
        outputs = pipeline.run()
    images, cpu, dali_cpu, start = 0, time.process_time(), dali_cpu_seconds(), time.perf_counter()
    while time.perf_counter() - start < seconds or not images:
        outputs = pipeline.run()
        images += batch_size
    to_host(outputs[1])  # waits for the device; the labels are the smallest output
    spent = time.perf_counter() - start
    return Rate(images, spent, time.process_time() - cpu, dali_cpu_seconds() - dali_cpu)


def to_host(batch: Any) -> np.ndarray:
    """One output of a pipeline, a DALI tensor list of uniform shape, as an array."""
    return np.asarray((batch.as_cpu() if hasattr(batch, "as_cpu") else batch).as_array())
