"""What all tests share: no GPU, and one tiny data set for the session."""

import os
from pathlib import Path

# Before anything imports TensorFlow.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

from tests.helpers.data import write_tiny_dataset
from tests.helpers.odd_run import OddRun, write_odd_run


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards for reading only: see `tests.helpers.data.write_tiny_dataset`."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images for reading only: see `tests.helpers.builds.write_images`."""
    from tests.helpers.builds import write_images

    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def built(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set built from `images`, for reading only."""
    from pipelines.building.build import build
    from pipelines.building.sources import open_source
    from tests.helpers.builds import OPTIONS

    output = tmp_path_factory.mktemp("built") / "shards"
    build(open_source(images), output, OPTIONS)
    return output


@pytest.fixture(scope="session")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> OddRun:
    """A run and the image files behind its shards, for reading only: see `tests.helpers.odd_run`."""
    return write_odd_run(tmp_path_factory.mktemp("odd"))
