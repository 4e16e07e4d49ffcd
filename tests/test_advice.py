"""What is said about shards and pictures that are far too large or too small."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kimagenet.commands import check_shards
from kimagenet.train import open_splits
from kimagenet.train_report import large_pictures
from pipelines import UserError
from pipelines.building.adopt import adopt_shards
from pipelines.shards import records
from pipelines.shards.advice import better_short_side, shard_size_problem, unused_splits
from pipelines.shards.dataset import DatasetInfo, ShardInfo, SplitInfo, shard_name
from tests.helpers import faults
from tests.helpers.data import example, jpeg, photo


def split(count: int, num_bytes: int) -> SplitInfo:
    shards = [ShardInfo(file=shard_name("train", i, count), records=1, bytes=num_bytes) for i in range(count)]
    return SplitInfo(shards=shards, sizes="train-sizes.npy")


@pytest.mark.parametrize(
    ("count", "num_bytes", "said"),
    [
        (1000, 81_000, "1,000 shards of 81 kB are far too small"),
        (65, 3_900_000, "65 shards of 4 MB are far too small"),
        (65, 4_100_000, ""),
        (18, 100_000, ""),  # few: it makes no difference
        (1024, 137_000_000, ""),  # ImageNet by the original project
        (128, 52_000_000, ""),
        (16, 4_100_000_000, "shards of 4 GB are far too large"),
        (1, 3_900_000_000, ""),
    ],
)
def test_the_size_of_shards(count: int, num_bytes: int, said: str) -> None:
    found = shard_size_problem(split(count, num_bytes))
    assert found.startswith(said) if said else not found


@pytest.mark.parametrize(
    ("short_side", "image_size", "better"),
    [(375, 224, None), (896, 224, None), (897, 224, 512), (3024, 224, 512), (3024, 380, 1024), (300, 64, 128)],
)
def test_the_size_of_pictures(short_side: int, image_size: int, better: int | None) -> None:
    assert better_short_side(short_side, image_size) == better


def test_most_pictures_decide() -> None:
    sides = np.array([3000] * 5 + [300] * 6)
    assert better_short_side(sides, 224) is None
    assert better_short_side(sides[:10], 224) == 512


@pytest.mark.parametrize(("size", "is_said"), [(224, True), (1024, False)])
def test_a_run_says_that_pictures_are_far_too_large(size: int, is_said: bool) -> None:
    """A quarantined record does not count."""
    shards = SimpleNamespace(sizes=np.array([[3024, 4032], [1, 1], [4000, 3000]]), usable=np.array([0, 2]))
    line = large_pictures(
        SimpleNamespace(recipe=SimpleNamespace(image_size=size)),  # type: ignore[arg-type]
        SimpleNamespace(shards=shards),  # type: ignore[arg-type]
    )
    assert bool(line) == is_said
    if is_said:
        assert "most training pictures are far larger than 224 px need (their median shorter side has 3,012 px)" in line
        assert "tools.build_shards --source IMAGES --output SHARDS --short-side=512`" in line
        assert "\n" not in line


def test_check_shards_says_that_shards_are_far_too_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is no fault."""
    image = jpeg(photo(np.random.default_rng(0), 0, 20, 30))
    for number in range(70):
        (tmp_path / shard_name("train", number, 70)).write_bytes(records.frame(example(image, 1)))
    adopt_shards(tmp_path)
    capsys.readouterr()
    assert check_shards.main([str(tmp_path), "--workers=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}: 70 train records: no fault"
    assert lines[1].startswith(f"{tmp_path}: train: 70 shards of ")
    assert "far too small: they are read in many short requests; a new build chooses" in lines[1]


def renamed(dataset: Path, old: str, new: str) -> Path:
    """The data set after its user renamed the shards of a split and wrote dataset.json again."""
    for path in dataset.glob(f"{old}-*-of-?????"):
        path.rename(dataset / path.name.replace(old, new, 1))
    adopt_shards(dataset)
    return dataset


@pytest.mark.parametrize(("wanted", "name"), [("validation", "val"), ("train", "training")])
def test_a_split_of_another_name_is_named_with_its_remedy(
    tiny_dataset: Path, tmp_path: Path, wanted: str, name: str
) -> None:
    dataset = renamed(faults.copy_dataset(tiny_dataset, tmp_path / "shards"), wanted, name)
    told = unused_splits(DatasetInfo.load(dataset), dataset, wanted)
    count = len(DatasetInfo.load(dataset).splits[name].shards)
    first, target = shard_name(name, 0, count), shard_name(wanted, 0, count)
    assert told.startswith(
        f"the split {name} of {dataset} is not used: rename its shards ({first} to {target} and so on)"
    )
    renamed(dataset, name, wanted)
    assert set(DatasetInfo.load(dataset).splits) == {"train", "validation"}
    assert unused_splits(DatasetInfo.load(dataset), dataset, wanted) == ""


def test_a_run_without_train_names_the_splits(tiny_dataset: Path, tmp_path: Path) -> None:
    dataset = renamed(faults.copy_dataset(tiny_dataset, tmp_path / "shards"), "train", "training")
    with pytest.raises(UserError, match=r"no split 'train'; the split training of .* is not used: rename its shards"):
        open_splits(dataset, DatasetInfo.load(dataset))
