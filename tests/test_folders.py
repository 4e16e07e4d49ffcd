"""Folders as a source: which folders are classes, and which layouts are refused."""

from pathlib import Path

import pytest

from pipelines import UserError
from pipelines.building.build import build
from pipelines.building.sources import open_source
from pipelines.shards.dataset import DatasetInfo
from tests.helpers.builds import OPTIONS


def _folders(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.touch()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no training images found: the folder has no files"),
        (("train/a.jpg",), r"the folder has 1 image without class folders \(train/a\.jpg\)"),
        (("train/a/1.jpg/", "train/b/1.jpg"), "the class a has no training images"),
        (("train/a/1.jpg", "train/b/"), "the class b has no training images"),
        (("train/a/1.jpg", "val/c/1.jpg"), "c: train has no such class"),
        (("train/a/1.jpg", "val/1.jpg"), "no validation images"),
    ],
)
def test_unknown_layouts_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    _folders(tmp_path, *names)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path)


def test_classes_are_sorted_and_validation_may_be_called_val(tmp_path: Path) -> None:
    _folders(tmp_path, "train/b/1.jpg", "train/a/2.jpg", "train/a/1.jpg", "train/.git/x", "val/b/7.jpg")
    source = open_source(tmp_path)
    assert [item.name for item in source.classes] == ["a", "b"]
    assert [(entry.name, entry.class_index) for entry in source.splits["train"]] == [
        ("1.jpg", 0),
        ("2.jpg", 0),
        ("1.jpg", 1),
    ]
    assert [(entry.name, entry.class_index) for entry in source.splits["validation"]] == [("7.jpg", 1)]


def test_a_source_without_validation(images: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "train").symlink_to(images / "train")
    build(open_source(tmp_path / "source"), tmp_path / "shards", OPTIONS)
    assert list(DatasetInfo.load(tmp_path / "shards").splits) == ["train"]


@pytest.mark.parametrize("character", ["\n", "\x1b[31m", "\r", "\x7f", "\x9b", "\u2028", "\u202e"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_class_names_with_control_characters_are_refused(tmp_path: Path, character: str, split: str) -> None:
    _folders(tmp_path, "train/a/1.jpg", f"{split}/c{character}at/1.jpg")
    with pytest.raises(UserError) as caught:
        open_source(tmp_path)
    assert ("has control characters; rename it" if split == "train" else "train has no such class") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Straße ü", "می‌نویسم", "猫 (cat)", "a'b\"c", "☕️"])
def test_other_class_names_are_kept(tmp_path: Path, name: str) -> None:
    _folders(tmp_path, f"train/{name}/1.jpg")
    assert [item.name for item in open_source(tmp_path).classes] == [name]


def test_class_names_that_look_alike_are_named(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    _folders(tmp_path / "1", f"train/{composed}/1.jpg", f"train/{decomposed}/1.jpg")
    with pytest.raises(UserError, match=r"the classes 'cafe\\u0301' and 'caf\\xe9' look alike.*; merge or rename them"):
        open_source(tmp_path / "1")
    _folders(tmp_path / "2", f"train/{composed}/1.jpg", f"val/{decomposed}/1.jpg")
    with pytest.raises(UserError, match=r"a class that looks alike, 'caf\\xe9', not 'cafe\\u0301'; rename the folder"):
        open_source(tmp_path / "2")
