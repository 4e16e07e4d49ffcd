"""What all tests share: no GPU, and one tiny data set for the session."""

import os
from pathlib import Path

# Before anything imports TensorFlow.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

from tests.data import write_tiny_dataset
from tests.odd_run import OddRun, write_odd_run


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards for reading only: see `tests.data.write_tiny_dataset`."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> OddRun:
    """A run and the image files behind its shards, for reading only: see `tests.odd_run`."""
    return write_odd_run(tmp_path_factory.mktemp("odd"))
