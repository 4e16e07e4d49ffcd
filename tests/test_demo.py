"""The demo data set: the same bytes each time, classes that need colour, texture and shape, built once and whole."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kimagenet import demo
from pipelines import ShardSet, UserError
from tests.helpers.programs import run_program


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo of two training images and one for validation in each class, generated in this process."""
    monkeypatch.setattr(demo, "TRAIN_PER_CLASS", 2)
    monkeypatch.setattr(demo, "VALIDATION_PER_CLASS", 1)


def test_every_combination_is_a_class() -> None:
    assert len(demo.CLASSES) == len(demo.COLOURS) * len(demo.TEXTURES) * len(demo.SHAPES) == 12
    assert list(demo.CLASSES) == sorted(demo.CLASSES)  # label order is that of the folders


def test_images_are_like_photos() -> None:
    sizes = set()
    for label in range(len(demo.CLASSES)):
        image = demo.draw(label, np.random.default_rng(label))
        assert image.mode == "RGB"
        assert 320 <= min(image.size) <= max(image.size) <= 500
        assert np.asarray(image).std() > 15
        sizes.add(image.size)
    assert len(sizes) > 6


def test_the_class_is_in_the_object_only() -> None:
    """The mean colour of whole images tells red from blue a little, textures and shapes not at all."""
    count = 12
    means = np.array(
        [
            [np.asarray(demo.draw(label, np.random.default_rng([7, label, i]))).mean((0, 1)) for i in range(count)]
            for label in range(len(demo.CLASSES))
        ]
    ).reshape(len(demo.COLOURS), len(demo.TEXTURES), len(demo.SHAPES), count, 3)
    spread = means.std(axis=(0, 1, 2, 3)).max()
    error = spread / np.sqrt(count)
    for axis in (1, 2):  # texture, shape
        others = tuple(i for i in range(4) if i != axis)
        assert np.ptp(means.mean(axis=others), axis=0).max() < 5 * error


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        demo.write_images(tmp_path / name, train_per_class=2, validation_per_class=1, seed=3, workers=workers)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.jpg"))
    assert len(files) == 36
    contents = [(tmp_path / "one" / name).read_bytes() for name in files]
    assert contents == [(tmp_path / "two" / name).read_bytes() for name in files]
    assert len(set(contents)) == 36
    with Image.open(tmp_path / "one" / files[0]) as image:
        assert image.format == "JPEG"


def test_built_once_and_completely(small: None, tmp_path: Path) -> None:
    seen: list[str] = []
    folder = demo.ensure_demo(tmp_path, workers=1, progress=lambda stage, done, total: seen.append(stage))
    assert folder == tmp_path / demo.DEMO_NAME
    assert set(seen) == {"generating the demo images", "train shards", "validation shards"}
    assert {path.name for path in tmp_path.iterdir()} == {demo.DEMO_NAME, f"{demo.DEMO_NAME}.lock"}
    train, validation = (ShardSet.open(folder, split) for split in ("train", "validation"))
    assert (train.num_records, validation.num_records, train.classes) == (24, 12, demo.CLASSES)
    seen.clear()
    before = folder.stat().st_mtime_ns
    assert demo.ensure_demo(tmp_path, workers=1, progress=lambda *_: seen.append("")) == folder
    assert (seen, folder.stat().st_mtime_ns) == ([], before)


def test_an_interrupted_call_leaves_nothing(small: None, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "validation shards":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.ensure_demo(tmp_path, workers=1, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [f"{demo.DEMO_NAME}.lock"]


def test_what_a_killed_call_left_is_removed(small: None, tmp_path: Path) -> None:
    left = tmp_path / f".{demo.DEMO_NAME}.partial" / "images" / "train"
    left.mkdir(parents=True)
    (left / "half.jpg").touch()
    folder = demo.ensure_demo(tmp_path, workers=1, progress=lambda *_: None)
    assert ShardSet.open(folder, "train").num_records == 24
    assert not left.exists()


@pytest.mark.parametrize("damage", ["removed", "cut off"])
def test_a_damaged_data_set_is_generated_again(
    damage: str, small: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = demo.ensure_demo(tmp_path, workers=1, progress=lambda *_: None)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shard = sorted(folder.glob("validation-*-of-*[0-9]"))[0]
    if damage == "removed":
        shard.unlink()
    else:
        os.truncate(shard, shard.stat().st_size - 1)
    assert demo.ensure_demo(tmp_path, workers=1, progress=lambda *_: None) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (line,) = {record.getMessage() for record in caplog.records}
    assert line.startswith(f"{shard}: ")
    assert line.endswith("; generating the demo data set again")


def test_the_cache_is_where_the_user_says(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.ensure_demo(workers=1) == tmp_path / "kimagenet" / demo.DEMO_NAME


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory; set XDG_CACHE_HOME"):
        demo.ensure_demo(tmp_path / "file" / "cache")


def test_no_tensorflow_is_needed() -> None:
    assert run_program("without_tensorflow", "kimagenet.demo").returncode == 0
