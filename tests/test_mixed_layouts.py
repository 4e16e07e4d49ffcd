"""Training and validation may come from different layouts; files that belong to none are named."""

from pathlib import Path

import pytest

from kimagenet.commands import build_shards
from pipelines import UserError
from pipelines.building.sources import Scratch, Source, open_source, recognize
from tests.helpers import layouts
from tests.helpers.sources import write_sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in each layout, in folders with the names of the layouts. For reading only."""
    return write_sources(tmp_path_factory.mktemp("sources"))


# Where training and validation are taken from, by name of the layout; the file or folder of each in its layout.
FILES = {
    "official_tars": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    "kaggle": ("ILSVRC/Data/CLS-LOC/train", "ILSVRC/Data/CLS-LOC/val"),
    "hugging_face": ("data/train_images_*", "data/val_images*"),
    "hugging_face_plain": ("train_images_*", "val_images*"),
    "class_folders": ("train", "validation"),
    "flat_validation": ("train", "val"),
}


def link(sources: Path, layout: str, split: int, root: Path) -> None:
    """Links the files of one split of a layout into a folder."""
    for path in sources.joinpath(layout).glob(FILES[layout][split]):
        target = root / path.relative_to(sources / layout)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)


def contents_of(source: Source) -> dict[str, list[tuple[int, str, bytes]]]:
    return {
        split: [(entry.class_index, entry.name, entry.read()) for entry in entries]
        for split, entries in source.splits.items()
    }


@pytest.mark.parametrize("validation", FILES)
@pytest.mark.parametrize("train", FILES)
def test_training_and_validation_of_different_layouts(
    sources: Path, tmp_path: Path, train: str, validation: str
) -> None:
    root = tmp_path / "mixed"
    link(sources, train, 0, root)
    link(sources, validation, 1, root)
    layout = recognize(root)
    source = layout.read(Scratch(tmp_path / "scratch"))
    expected = open_source(sources / "class_folders")
    assert contents_of(source) == contents_of(expected)
    assert source.classes == expected.classes
    assert layout.unused == ()


def test_validation_of_the_layout_of_train_comes_first(sources: Path, tmp_path: Path) -> None:
    link(sources, "class_folders", 0, tmp_path)
    link(sources, "class_folders", 1, tmp_path)
    link(sources, "official_tars", 1, tmp_path)
    assert recognize(tmp_path).text == "train/<class>/, validation/<class>/"
    assert recognize(tmp_path).unused == ("ILSVRC2012_img_val.tar",)


def test_files_that_are_not_used_are_named_before_the_build(
    sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "source"
    link(sources, "class_folders", 0, root)
    for name in ("val", "test", ".cache", "a\nb"):
        (root / name).mkdir()
    (root / "LOC_val_solution.csv").touch()
    link(sources, "class_folders", 1, root)
    assert build_shards.main(["--source", str(root), "--output", str(sources)]) == 2  # not an empty folder
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [
        f"{root}: train/<class>/, validation/<class>/",
        f"{root}: not used: LOC_val_solution.csv, a b/, test/, val/",
    ]


def test_files_beside_a_part_in_a_folder_are_named(sources: Path, tmp_path: Path) -> None:
    link(sources, "kaggle", 0, tmp_path)
    link(sources, "kaggle", 1, tmp_path)
    (tmp_path / "ILSVRC" / "Annotations").mkdir()
    (tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "test").mkdir()
    (tmp_path / "LOC_train_solution.csv").touch()
    assert recognize(tmp_path).unused == (
        "ILSVRC/Annotations/",
        "ILSVRC/Data/CLS-LOC/test/",
        "LOC_train_solution.csv",
    )


def test_validation_images_of_other_classes_are_refused(sources: Path, tmp_path: Path) -> None:
    layouts.write_folder(tmp_path / "train" / "cat", {"1.JPEG": b"1"})
    link(sources, "official_tars", 1, tmp_path)
    with pytest.raises(UserError, match=r"ILSVRC2012_img_val\.tar.*: no validation images in classes"):
        open_source(tmp_path)


def test_validation_images_alone_are_named(sources: Path, tmp_path: Path) -> None:
    link(sources, "official_tars", 1, tmp_path)
    with pytest.raises(
        UserError, match=r"only validation images found, ILSVRC2012_img_val\.tar .*: there is no train/"
    ):
        open_source(tmp_path)


def test_a_tar_of_hugging_face_that_is_missing_or_there_twice(sources: Path, tmp_path: Path) -> None:
    for name in ("hugging_face", "hugging_face_plain"):
        link(sources, name, 0, tmp_path)
    for path in tmp_path.glob("train_images_*.tar"):
        path.rename(tmp_path / "data" / path.name)
    layout = recognize(tmp_path)
    assert layout.text == "ImageNet in Hugging Face's layout, 5 train tars in data/"
    assert layout.unused == tuple(f"data/train_images_{number}.tar.gz" for number in range(5))
    for path in tmp_path.rglob("train_images_2.tar*"):
        path.unlink()
    with pytest.raises(UserError, match=r"train_images_2\.tar\.gz: the tar is missing, but later ones are there"):
        recognize(tmp_path)
