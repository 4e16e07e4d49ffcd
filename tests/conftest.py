"""What all tests share: no GPU, and one tiny data set for the session."""

import os
from pathlib import Path

# Before anything imports TensorFlow.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

from tests.data import write_tiny_dataset


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards for reading only: see `tests.data.write_tiny_dataset`."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"))
