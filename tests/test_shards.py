"""ShardSet and dataset.json."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines import ShardSet, UserError
from tests.helpers.data import NUM_CLASSES, TRAIN_RECORDS, TRAIN_SHARDS


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny_dataset, tmp_path / "shards")


def edit(dataset: Path, **changes: object) -> None:
    path = dataset / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_counts_and_places(tiny_dataset: Path) -> None:
    shards = ShardSet.open(tiny_dataset, "train")
    assert shards.num_records == TRAIN_RECORDS
    assert shards.num_classes == NUM_CLASSES
    assert len(shards.paths) == TRAIN_SHARDS
    assert shards.sizes.shape == (TRAIN_RECORDS, 2)
    for number, path in enumerate(shards.paths):
        assert shards.lengths[shards.shard == number].sum() == path.stat().st_size
    np.testing.assert_array_equal(shards.usable, np.arange(TRAIN_RECORDS))


def test_quarantined_records_are_not_usable(dataset: Path) -> None:
    splits = json.loads((dataset / "dataset.json").read_text())["splits"]
    splits["train"]["quarantine"] = [3, 50]
    edit(dataset, splits=splits)
    shards = ShardSet.open(dataset, "train")
    assert shards.num_records == TRAIN_RECORDS
    assert set(range(TRAIN_RECORDS)) - set(shards.usable.tolist()) == {3, 50}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"label_base": -1}, "label_base"),
        ({"label_base": "1"}, "label_base"),
        ({"classes": []}, "classes"),
        ({"surprise": 1}, "surprise"),
        ({"splits": {"train": {"shards": [{"file": "../x", "records": 1, "bytes": 1}], "sizes": "s"}}}, "file"),
        ({"splits": {"train": {"shards": [{"file": "/x", "records": 1, "bytes": 1}], "sizes": "s"}}}, "file"),
        ({"splits": {"train": {"shards": [], "sizes": "s"}}}, "shards"),
        ({"splits": {}}, "no split 'train'"),
    ],
)
def test_a_wrong_dataset_file_is_refused(dataset: Path, changes: dict, message: str) -> None:
    edit(dataset, **changes)
    with pytest.raises(UserError, match=message) as caught:
        ShardSet.open(dataset, "train")
    assert "\n" not in str(caught.value)


def test_missing_things_are_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        ShardSet.open(tmp_path / "nowhere", "train")
    (dataset / "train-00000-of-00003").unlink()
    with pytest.raises(UserError, match="train-00000-of-00003: the shard is missing"):
        ShardSet.open(dataset, "train")
    (dataset / "validation-sizes.npy").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"validation-sizes\.npy"):
        ShardSet.open(dataset, "validation")
    (dataset / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json"):
        ShardSet.open(dataset, "validation")
