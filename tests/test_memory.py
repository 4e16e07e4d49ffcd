"""What stays in memory: free memory goes back to the system, and loaders keep nothing that they no longer need.

How much memory a run takes is measured in `bench/`.
"""

import ctypes
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from pipelines import AugmentSpec, BatchSpec, EpochPlan, Loader, ShardSet, open_loader, tf_image
from pipelines.stream import Segment
from pipelines.system.memory import memory_returned
from tests.helpers.programs import environment, run_program
from tests.test_loaders import ALL, READING, needs_dali, opened

SIZE, COUNT = 64 << 10, 600  # bytes: smaller than what gets a separate mapping


@pytest.fixture(scope="module")
def train(tiny_dataset: Path) -> ShardSet:
    return ShardSet.open(tiny_dataset, "train")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc: there is nothing to ask")
def test_the_ends_of_arenas_are_returned() -> None:
    settings = environment()
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        settings.pop(name, None)
    ran = run_program("free_arenas", SIZE, COUNT, env=settings, timeout=60)
    assert not ran.stderr
    assert int(ran.stdout) < SIZE * COUNT * 0.1  # 0.8 with malloc_trim alone


def test_other_c_libraries_than_glibc_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.system.memory._LIBC", object())
    with memory_returned():
        pass


@pytest.mark.parametrize("name", ALL)
def test_plans_of_past_epochs_are_freed(train: ShardSet, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_of, plans = Loader.plan, []

    def plan(*arguments) -> EpochPlan:
        made = plan_of(*arguments)
        plans.append(weakref.ref(made))
        return made

    monkeypatch.setattr(Loader, "plan", plan)
    with opened(name, train) as loader:
        for epoch in range(4):
            assert sum(1 for _ in loader.batches(epoch)) == loader.steps_per_epoch
        gc.collect()
        assert sum(plan() is not None for plan in plans) < 3  # the next epoch is already open


@needs_dali
def test_dalis_decoders_stay_loaded(train: ShardSet) -> None:
    """If they are loaded again, their static data stays in memory each time."""

    def loaded() -> set[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {path for path in (line.split()[-1] for line in lines) if "/nvimgcodec/extensions/" in path}

    with opened("dali", train) as loader:
        batches = loader.batches(0)
        next(batches)
        in_use = loaded()
        del batches
    gc.collect()
    assert in_use
    assert loaded() == in_use


def test_tfdata_traces_its_graph_once(train: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset that is made outside a function takes some memory that TensorFlow never frees."""
    traced = []

    def render(*arguments: Any) -> tf.Tensor:
        traced.append(arguments)
        return tf_image.render(*arguments)

    monkeypatch.setattr("pipelines.loaders.tfdata.render", render)
    with opened("tfdata", train) as loader:
        for epoch, start in ((0, 0), (1, 0), (2, 1)):
            assert len(list(loader.epoch(epoch, start))) == loader.steps_per_epoch - start
    assert len(traced) == 1


@pytest.mark.parametrize("name", READING)
def test_many_loaders_are_opened_without_warnings_and_freed(
    train: ShardSet, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorFlow warns when a function is traced often. A loader without references is freed at once."""
    gc.collect()
    gc.disable()
    try:
        for size in range(16, 24):
            with open_loader(name, train, BatchSpec(4, size), AugmentSpec.train(), device="cpu") as loader:
                next(loader.batches(0))
            there = weakref.ref(loader)
            del loader
            assert there() is None
    finally:
        gc.enable()
    assert not caplog.messages


def test_memory_is_returned_when_a_pipeline_is_freed(train: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    happened = []

    def dataset(loader: Loader, segment: Segment) -> Iterator[int]:
        try:
            yield from range(segment.steps)
        finally:
            happened.append(f"{segment.first} gone")

    @contextmanager
    def returned() -> Iterator[None]:
        happened.append("begins")
        yield
        happened.append("given back")

    monkeypatch.setattr("pipelines.stream.memory_returned", returned)
    with opened("synthetic", train) as loader:
        monkeypatch.setattr(type(loader), "make_dataset", dataset)
        for epoch in range(3):
            assert len(list(loader.batches(epoch))) == loader.steps_per_epoch
        assert happened == []  # one pipeline for all of them
        batches = loader.batches(0)  # another one
        assert next(batches) == 0
        assert happened[:3] == ["begins", "0 gone", "given back"]
        happened.clear()
        del batches
        assert happened[:3] == ["begins", "0 gone", "given back"]
