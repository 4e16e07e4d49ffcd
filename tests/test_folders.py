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
        ((), "no images found: there is no train/<class>/"),
        (("train/a.jpg",), "no class folders"),
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
