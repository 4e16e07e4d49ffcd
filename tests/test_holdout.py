"""A share of the training images for validation: by their bytes, class by class, stable when images are added."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from kimagenet.commands import build_shards
from pipelines import UserError
from pipelines.building.holdout import hold_out, moved
from pipelines.building.options import BuildOptions
from pipelines.building.sources import open_source, recognize
from pipelines.shards.dataset import DatasetInfo
from pipelines.shards.shard_set import ShardSet
from tests.helpers.builds import CLASSES, TRAIN_PER_CLASS


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def numbered(count: int, classes: str = "abc") -> dict[str, bytes]:
    return {
        f"train/{name}/{number}.jpg": b"%s %d" % (name.encode(), number) for name in classes for number in range(count)
    }


def taken(root: Path, share: float) -> set[str]:
    """The names of the images that are for validation."""
    source = open_source(root)
    parts = hold_out(source, share)
    both = [entry.path for split in ("train", "validation") for entry in parts.splits[split]]
    assert sorted(both) == sorted(entry.path for entry in source.splits["train"])
    assert parts.classes == source.classes
    for entries in parts.splits.values():
        assert entries == sorted(entries, key=lambda entry: (entry.class_index, entry.name))
    return {entry.path for entry in parts.splits["validation"]}


@pytest.mark.parametrize(
    ("hashes", "share", "expected"),
    [
        ([0.05, 0.2, 0.6], 0.1, [True, False, False]),
        ([0.3, 0.2, 0.6], 0.1, [False, True, False]),  # at least one
        ([0.3, 0.2, 0.2], 0.1, [False, True, True]),  # copies stay together
        ([0.3, 0.2, 0.6], 0.9, [True, True, False]),  # at least one stays
        ([0.3, 0.3, 0.3], 0.1, [False, False, False]),
        ([0.3], 0.9, [False]),
        ([float("nan"), 0.2, 0.6], 0.1, [False, True, False]),
        ([float("nan"), 0.2], 0.9, [False, False]),
    ],
)
def test_which_images_are_taken(hashes: list[float], share: float, expected: list[bool]) -> None:
    values = np.array([*hashes, 0.05, 0.5])
    labels = np.array([*[1] * len(hashes), 0, 0])
    assert moved(values, labels, share).tolist() == [*expected, True, False]


def test_each_class_gives_about_its_share(tmp_path: Path) -> None:
    root = write(tmp_path, numbered(400))
    names = taken(root, 0.1)
    assert names == taken(root, 0.1)
    for name in "abc":
        assert 24 <= sum(path.startswith(f"train/{name}/") for path in names) <= 58  # three standard deviations


def test_images_keep_their_split_when_others_are_added_or_renamed(tmp_path: Path) -> None:
    before = taken(write(tmp_path, numbered(200)), 0.2)
    write(tmp_path, numbered(300))  # a hundred more of each class
    after = taken(tmp_path, 0.2)
    assert {name for name in after if int(Path(name).stem) < 200} == before
    (tmp_path / "train" / "a").rename(tmp_path / "train" / "z")
    assert taken(tmp_path, 0.2) == {name.replace("train/a/", "train/z/") for name in after}


def test_a_larger_share_takes_more_of_the_same(tmp_path: Path) -> None:
    root = write(tmp_path, numbered(100))
    assert taken(root, 0.1) < taken(root, 0.3) < taken(root, 0.9)


def test_classes_that_are_too_small_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(tmp_path, {**numbered(5, "a"), "train/b/1.jpg": b"1", "train/c/1.jpg": b"2", "train/c/2.jpg": b"2"})
    assert taken(root, 0.1) <= {f"train/a/{number}.jpg" for number in range(5)}
    assert caplog.messages == [f"{root}: too few different images for validation in b, c"]
    shutil.rmtree(root / "train" / "a")
    with pytest.raises(UserError, match="no class has two different images"):
        hold_out(open_source(root), 0.1)


def test_validation_images_that_are_there_are_not_replaced(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, {**numbered(3), "valid/a/1.jpg": b"1"}))
    with pytest.raises(UserError, match="has validation images, so none are taken from training; leave out"):
        hold_out(source, 0.1)


@pytest.mark.parametrize(
    ("folders", "used", "unused"),
    [
        (("val",), "val", ()),
        (("valid", "test"), "valid", ("test/",)),
        (("validation", "valid", "val"), "validation", ("val/", "valid/")),
        (("test",), "test", ()),
    ],
)
def test_folders_of_validation_images(
    folders: tuple[str, ...], used: str, unused: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path, {**numbered(1), **{f"{folder}/a/1.jpg": b"1" for folder in folders}})
    layout = recognize(tmp_path)
    assert layout.text == f"train/<class>/, {used}/<class>/"
    assert layout.unused == unused
    assert len(layout.read(None).splits["validation"]) == 1


def test_test_images_without_labels_are_not_used(tmp_path: Path) -> None:
    layout = recognize(write(tmp_path, {**numbered(1), "test/1.jpg": b"1", "other/a/1.jpg": b"1"}))
    assert layout.text == "train/<class>/"
    assert layout.unused == ("other/", "test/")


def test_a_plan_without_a_share_is_that_of_earlier_releases() -> None:
    """So a build that one of them began continues."""
    earlier = {"train_shards", "validation_shards", "short_side", "quality", "seed"}
    assert set(BuildOptions().content()) == earlier
    assert BuildOptions(validation_share=0.1).content()["validation_share"] == 0.1


def test_shards_with_a_share_for_validation(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "source"
    root.mkdir()
    (root / "train").symlink_to(images / "train")
    for number in range(10):
        (root / f"folder {number}").mkdir()
        (root / f"{number}.txt").touch()
    command = ["--source", str(root), "--workers", "1", "--validation-share", "0.2"]
    assert build_shards.main([*command, "--output", str(tmp_path / "shards")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{root}: train/<class>/"
    folders = ", ".join(f"folder {number}/" for number in range(10))
    assert (
        printed[1]
        == f"{root}: not used: {', '.join(f'{number}.txt' for number in range(8))}, {folders} and 2 more files"
    )
    info = DatasetInfo.load(tmp_path / "shards")
    counts = {split: part.num_records for split, part in info.splits.items()}
    assert printed[2] == f"3 classes, {counts['train']} train, {counts['validation']} validation"
    assert sum(counts.values()) == TRAIN_PER_CLASS * len(CLASSES)
    assert 10 <= counts["validation"] <= 45
    assert info.build["validation_share"] == 0.2
    assert info.build["layout"] == "train/<class>/, of which a share of 0.2 is for validation"
    assert set(ShardSet.open(tmp_path / "shards", "validation").labels.tolist()) == {0, 1, 2}
    assert build_shards.main([*command[:-1], "1", "--output", str(tmp_path / "other")]) == 2
    assert "validation_share must be less than 1, not 1.0 (--validation-share)" in capsys.readouterr().err
