"""Each command that an error about a data set prints repairs it, in the situation in which it is printed."""

import importlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.shards import remedies
from pipelines.shards.dataset import DATASET_FILE, DatasetInfo
from pipelines.shards.index import index_path
from pipelines.shards.shard_set import ShardSet
from tests.helpers import faults
from tests.helpers.builds import write_images

SHARD = "train-00001-of-00003"
Spoil = Callable[[Path], object]


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    return faults.copy_dataset(tiny_dataset, tmp_path / "my shards")


def run_printed(text: str, **names: Path) -> int:
    """Runs the first command in a text, in this process: TensorFlow need not be imported again."""
    words = [str(names.get(word, word)) for word in shlex.split(text.split("`")[1])]
    assert words[:2] == [*shlex.split(remedies.python()), "-m"]
    code: int = importlib.import_module(words[2]).main([*words[3:], "--workers=1"])
    return code


def edited(change: Callable[[dict], object]) -> Spoil:
    """Changes dataset.json."""

    def spoil(folder: Path) -> None:
        told = json.loads((folder / DATASET_FILE).read_text())
        change(told)
        (folder / DATASET_FILE).write_text(json.dumps(told))

    return spoil


def doubled_key(folder: Path) -> None:
    path = folder / DATASET_FILE
    path.write_text(path.read_text().replace('"label_base"', '"label_base": 1, "label_base"', 1))


REMOVED: dict[str, tuple[Spoil, str]] = {
    "a wrong field": (edited(lambda told: told.update(label_base="1")), "label_base: "),
    "no JSON": (lambda folder: (folder / DATASET_FILE).write_text("{"), "the file: Invalid JSON"),
    "a doubled key": (doubled_key, "not a JSON file"),
    "a missing field": (edited(lambda told: told.pop("version")), "lacks version"),
    "quarantine": (
        edited(lambda told: told["splits"]["train"].update(quarantine=[101])),
        "quarantines a record that the train split does not have",
    ),
}


@pytest.mark.parametrize("kind", REMOVED)
def test_a_file_that_is_to_be_removed(dataset: Path, kind: str) -> None:
    spoil, what = REMOVED[kind]
    spoil(dataset)
    with pytest.raises(UserError) as caught:
        ShardSet.open(dataset, "train")
    assert caught.value.what.startswith(what)
    assert "remove the file and run `" in caught.value.remedy
    (dataset / DATASET_FILE).unlink()
    assert run_printed(caught.value.remedy) == 0
    ShardSet.open(dataset, "train")


KEPT: dict[str, tuple[Spoil, str]] = {
    "no dataset.json": (
        lambda folder: (folder / DATASET_FILE).unlink(),
        "no such file; the folder has 5 TFRecord",
    ),
    "another shard": (lambda folder: shutil.copy(folder / "train-00000-of-00003", folder / SHARD), "the shard has "),
    "no index": (lambda folder: index_path(folder / SHARD).unlink(), ""),
    "another count": (
        edited(lambda told: told["splits"]["train"]["shards"][1].update(records=5)),
        "the index lists ",
    ),
    "no sizes": (lambda folder: (folder / "train-sizes.npy").unlink(), "No such file"),
    "no table": (lambda folder: (folder / "train-sizes.npy").write_bytes(b"1"), "not a table of image sizes"),
    "few sizes": (
        lambda folder: np.save(folder / "train-sizes.npy", np.ones((3, 2), np.int32)),
        "the image sizes do not fit the shards",
    ),
}


@pytest.mark.parametrize("kind", KEPT)
def test_a_data_set_that_is_repaired_where_it_is(dataset: Path, kind: str) -> None:
    spoil, what = KEPT[kind]
    spoil(dataset)
    with pytest.raises(UserError) as caught:
        ShardSet.open(dataset, "train")
    assert caught.value.what.startswith(what)
    assert run_printed(caught.value.remedy) == 0
    assert DatasetInfo.load(dataset).splits.keys() == {"train", "validation"}
    ShardSet.open(dataset, "train")


def test_a_folder_that_is_not_there_can_be_built(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder") as caught:
        ShardSet.open(tmp_path / "new shards", "train")
    assert run_printed(caught.value.remedy, FOLDER=write_images(tmp_path / "images")) == 0
    assert ShardSet.open(tmp_path / "new shards", "train").num_records == 132
