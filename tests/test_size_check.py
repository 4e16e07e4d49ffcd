"""A run does not begin with image sizes that are not those of the images."""

from pathlib import Path

import numpy as np
import pytest

from kimagenet.train import open_splits
from pipelines import ShardSet, UserError
from pipelines.shards import size_check
from pipelines.shards.dataset import DatasetInfo
from pipelines.shards.shard_set import write_sizes
from pipelines.shards.size_check import check_sizes
from tests.helpers import faults


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    return faults.copy_dataset(tiny_dataset, tmp_path / "shards")


def change_sizes(dataset: Path, split: str, factor: float) -> None:
    """As an earlier `build_index` wrote them from wrong features."""
    path = dataset / f"{split}-sizes.npy"
    write_sizes(path, np.maximum(np.load(path) * factor, 1))


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("factor", [0.5, 2])
def test_a_run_with_wrong_sizes_is_refused(dataset: Path, split: str, factor: float) -> None:
    open_splits(dataset, DatasetInfo.load(dataset))
    change_sizes(dataset, split, factor)
    with pytest.raises(
        UserError, match=rf"the image sizes of the {split} split differ .*; run `.*build_index"
    ) as error:
        open_splits(dataset, DatasetInfo.load(dataset))
    height, width = np.load(dataset / f"{split}-sizes.npy")[0]
    assert f"not {height} × {width} (" in str(error.value)


def test_damaged_and_quarantined_records_are_passed_over(dataset: Path) -> None:
    shards = ShardSet.open(dataset, "train")
    faults.corrupt(shards, [0], "image head")
    faults.break_example(shards, int(shards.usable[-1]))
    check_sizes(shards)


def test_few_records_are_read(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[Path, int, int]] = []

    def reading(path: Path, offset: int, length: int) -> bytes:
        read.append((path, offset, length))
        return path.read_bytes()[offset : offset + length]

    monkeypatch.setattr(size_check, "read_bytes", reading)
    shards = ShardSet.open(dataset, "train")
    check_sizes(shards)
    assert len(read) == 32 < shards.num_records
    assert {path for path, *_ in read} == set(shards.paths)
    read.clear()
    monkeypatch.setattr(size_check, "_MOST_BYTES", 1)  # as with very large images
    check_sizes(shards)
    assert len(read) == 4
