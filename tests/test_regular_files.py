"""A FIFO in the place of a small file is refused at once, by name: opening it would wait without a word."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kimagenet import train
from kimagenet.class_weights import class_weights
from kimagenet.commands import build_index, build_shards, check_shards
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines import ShardSet, UserError
from pipelines.shards.dataset import ClassInfo
from pipelines.system.files import write_own
from pipelines.system.reading import read_file
from tests.helpers import faults, layouts


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    return faults.copy_dataset(tiny_dataset, tmp_path / "shards")


def fifo(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)])
def test_only_regular_files_are_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "file")
    with pytest.raises(OSError, match=r"(not a regular file|Is a directory): '.*file'"):
        read_file(tmp_path / "file")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/null", path)])
def test_only_regular_files_are_written(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "file")
    with pytest.raises(OSError, match=r"not a regular file: '.*file'"):
        write_own(tmp_path / "file", b"content")


def test_links_to_files_are_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_own(tmp_path / "link", b"content")
    assert read_file(tmp_path / "link") == read_file(tmp_path / "file") == b"content"


@pytest.mark.parametrize("name", ["dataset.json", "train-00001-of-00003.idx", "train-sizes.npy"])
def test_the_files_of_a_data_set(dataset: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = fifo(dataset / name)
    line = f"{path}: not a regular file"
    with pytest.raises(UserError, match="not a regular file"):
        ShardSet.open(dataset, "train")
    assert check_shards.main([str(dataset), "--workers=1"]) in (1, 2)
    assert f"{line}; remove it and run `" in "".join(capsys.readouterr())
    assert build_index.main([str(dataset), "--workers=1"]) == 2
    assert f"{line}; remove it" in capsys.readouterr().err
    path.unlink()  # as the messages say
    assert build_index.main([str(dataset), "--workers=1"]) == 0
    assert check_shards.main([str(dataset), "--workers=1"]) == 0


def test_the_files_of_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = fifo(tmp_path / "recipe.json")
    assert train.main([f"--recipe={recipe}"]) == 2
    assert capsys.readouterr().err == f"error: {recipe}: not a regular file\n"
    for name in ("run.json", "recipe.json"):
        run = RunDirectory(tmp_path / f"run of {name}")
        run.begin(Recipe(), {})
        fifo(run.path / name)
        with pytest.raises(UserError, match=r"cannot be written \(not a regular file\)"):
            run.begin(Recipe(), {})
    weights = fifo(tmp_path / "weights.csv")
    with pytest.raises(UserError, match=r"weights\.csv: not a regular file"):
        class_weights(str(weights), [ClassInfo(name="a")], lambda: [0], None)


def test_the_labels_of_a_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kaggle = tmp_path / "kaggle"
    data = kaggle / "ILSVRC" / "Data" / "CLS-LOC"
    layouts.write_folder(data / "train" / "n01440764", {"n01440764_1.JPEG": b"1"})
    layouts.write_folder(data / "val", {"ILSVRC2012_val_00000001.JPEG": b"1"})
    labels = fifo(kaggle / "LOC_val_solution.csv")
    assert build_shards.main([f"--source={kaggle}", f"--output={tmp_path / 'shards'}", "--workers=1"]) == 2
    assert f"{labels}: not a regular file" in capsys.readouterr().err
