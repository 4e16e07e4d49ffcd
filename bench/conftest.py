"""pytest bench/ [--dataset-dir DIR]: short versions of the questions under pytest-benchmark."""

from pathlib import Path

import pytest

from bench.settings import Settings
from pipelines.shards.shard_set import ShardSet
from pipelines.system.processes import cpu_count


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --dataset-dir."""
    parser.addoption("--dataset-dir", type=Path, help="folder of shards (default: the demo data)")


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    """Batches of 64 at 224 pixels, one thread for each core. The turns are too short for figures worth quoting."""
    from kimagenet.demo import ensure_demo
    from pipelines import loaders

    folder = request.config.getoption("--dataset-dir") or ensure_demo()
    shards = ShardSet.open(folder, "train")
    return Settings(shards, loaders.names(), workers=cpu_count(), rounds=1, seconds=0.5, short=True)
