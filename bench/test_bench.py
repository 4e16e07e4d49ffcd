"""Every candidate, batch by batch, and every question once, under pytest-benchmark."""

from contextlib import closing
from typing import Any

import pytest

from bench import decode, peers
from bench.__main__ import QUESTIONS, ask
from bench.settings import Settings
from bench.timing import Candidate
from pipelines import loaders

_BATCHES = 10


def _time(benchmark: Any, candidate: Candidate) -> None:
    with closing(candidate.open()) as stream:
        images = benchmark.pedantic(
            next, args=(stream,), rounds=_BATCHES, iterations=1, warmup_rounds=candidate.buffered + 2
        )
    benchmark.extra_info["images"] = images
    benchmark.extra_info["images_per_second"] = images / benchmark.stats.stats.mean


@pytest.mark.benchmark(group="decode")
def test_limit(benchmark: Any, settings: Settings) -> None:
    pytest.importorskip("simplejpeg")
    _time(benchmark, decode.limit(settings))


@pytest.mark.parametrize("augment", ["full", "standard", "evaluation"])
@pytest.mark.parametrize("name", loaders.names())
def test_loader(benchmark: Any, settings: Settings, name: str, augment: str) -> None:
    benchmark.group = f"loaders, {augment}"
    _time(benchmark, settings.candidate(name, name, augment))


@pytest.mark.parametrize(
    ("name", "augment"), [(name, augment) for name in peers.names() for augment in peers.peer(name).AUGMENTS]
)
def test_peer(benchmark: Any, settings: Settings, name: str, augment: str) -> None:
    benchmark.group = f"loaders, {augment}"
    if problem := peers.peer(name).unavailable():
        pytest.skip(problem)
    _time(benchmark, peers.candidate(name, settings, augment))


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.benchmark(group="questions")
def test_question(benchmark: Any, settings: Settings, question: str) -> None:
    pytest.importorskip("simplejpeg")
    measurements = benchmark.pedantic(lambda: list(ask(question, settings)), rounds=1, iterations=1)
    benchmark.extra_info["measurements"] = {f"{m.name}, {m.unit}": m.median for m in measurements}
    assert measurements
