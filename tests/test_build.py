"""From folders to shards: content, order, balance, and what is left behind when a build fails."""

import errno
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipelines import ShardSet, UserError, records, shard_writer
from pipelines.build import REJECTED_FILE, BuildOptions, build, rebalanced, shard_name, shuffled_shards
from pipelines.dataset import DatasetInfo
from pipelines.index import read_index, scan
from pipelines.sources import Entry, Place, open_source
from tests.data import jpeg, photo
from tools import build_shards

ROOT = Path(__file__).parents[1]
CLASSES = ("n01440764", "crane bird", "Straße ü")
TRAIN_PER_CLASS, VALIDATION_PER_CLASS = 44, 5  # 132 images: two shards of 66
OPTIONS = BuildOptions(train_shards=2, validation_shards=2)
PLACE = Place("", "")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of good JPEGs, names with spaces and non-ASCII letters included. For reading only."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN_PER_CLASS), ("validation", VALIDATION_PER_CLASS)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(20, 60, 2)
                (folder / f"Bild ä {number}.JPEG").write_bytes(jpeg(photo(rng, label, height, width)))
            (folder / ".DS_Store").write_bytes(b"not looked at")
    return root


@pytest.fixture(scope="module")
def built(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set built from `images`. For reading only."""
    output = tmp_path_factory.mktemp("built") / "shards"
    build(open_source(images), output, OPTIONS)
    return output


@pytest.fixture
def nasty(images: Path, tmp_path: Path) -> Path:
    """A copy of `images` with some files that are no good JPEGs in the first class."""
    root = tmp_path / "nasty"
    for path in images.rglob("*.JPEG"):
        target = root / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    folder = root / "train" / CLASSES[0]
    picture = photo(np.random.default_rng(9), 0, 40, 50)
    good = jpeg(picture)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.save(folder / "png.JPEG", "PNG")
    (folder / "empty.jpg").touch()
    (folder / "half.jpg").write_bytes(good[: len(good) // 2])
    (folder / "two bytes short.jpg").write_bytes(good[:-2])
    (folder / "notes.txt").write_text("not an image")
    (folder / "folder.jpg").mkdir()
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (root / "train" / "README").write_text("in no class folder")
    return root


NASTY = {
    f"train/{CLASSES[0]}/empty.jpg": "empty",
    f"train/{CLASSES[0]}/half.jpg": "runcated",
    f"train/{CLASSES[0]}/two bytes short.jpg": "truncated",
    f"train/{CLASSES[0]}/notes.txt": "not an image",
    f"train/{CLASSES[0]}/folder.jpg": "Is a directory",
    f"train/{CLASSES[0]}/gone.jpg": "leads nowhere",
    "train/README": "no class folder",
}


def read_with_tensorflow(directory: Path, split: str) -> list[dict[str, Any]]:
    """Every record of a split, in order, read by TensorFlow alone."""
    features = {
        records.ENCODED: tf.io.FixedLenFeature([], tf.string),
        records.HEIGHT: tf.io.FixedLenFeature([], tf.int64),
        records.WIDTH: tf.io.FixedLenFeature([], tf.int64),
        records.COLORSPACE: tf.io.FixedLenFeature([], tf.string),
        records.CHANNELS: tf.io.FixedLenFeature([], tf.int64),
        records.FORMAT: tf.io.FixedLenFeature([], tf.string),
        records.FILENAME: tf.io.FixedLenFeature([], tf.string),
        records.LABEL: tf.io.FixedLenFeature([], tf.int64),
        records.SYNSET: tf.io.FixedLenFeature([], tf.string),
        records.TEXT: tf.io.FixedLenFeature([], tf.string),
    }
    paths = sorted(str(path) for path in directory.glob(f"{split}-?????-of-?????"))
    dataset = tf.data.TFRecordDataset(paths).map(lambda data: tf.io.parse_single_example(data, features))
    return list(dataset.as_numpy_iterator())


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("split", "per_class"), [("train", TRAIN_PER_CLASS), ("validation", VALIDATION_PER_CLASS)])
def test_tensorflow_reads_what_was_in_the_folders(images: Path, built: Path, split: str, per_class: int) -> None:
    found = read_with_tensorflow(built, split)
    names = sorted(CLASSES)
    assert len(found) == per_class * len(CLASSES)
    assert {(item[records.SYNSET], item[records.FILENAME]) for item in found} == {
        (path.parent.name.encode(), path.name.encode()) for path in (images / split).rglob("*.JPEG")
    }
    for item in found:
        name = item[records.SYNSET].decode()
        path = images / split / name / item[records.FILENAME].decode()
        assert item[records.ENCODED] == path.read_bytes()
        with Image.open(path) as image:
            assert (item[records.WIDTH], item[records.HEIGHT]) == image.size
        assert item[records.LABEL] == names.index(name) + 1
        assert item[records.TEXT].decode() == ("tench, Tinca tinca" if name == "n01440764" else name)
        assert (item[records.COLORSPACE], item[records.CHANNELS], item[records.FORMAT]) == (b"RGB", 3, b"JPEG")


def test_the_shard_set_is_what_tensorflow_reads(built: Path) -> None:
    for split, names in (("train", (66, 66)), ("validation", (15,))):
        shards = ShardSet.open(built, split)
        assert tuple(np.bincount(shards.shard)) == names
        assert [path.name for path in shards.paths] == [shard_name(split, i, len(names)) for i in range(len(names))]
        assert shards.classes == ("Straße ü", "crane bird", "tench, Tinca tinca")
        assert shards.label_base == 1
        found = read_with_tensorflow(built, split)
        assert shards.sizes.tolist() == [[item[records.HEIGHT], item[records.WIDTH]] for item in found]
        for path in shards.paths:
            assert read_index(path).to_bytes() == scan(path).to_bytes()


def test_dataset_json_says_how_it_was_built(built: Path) -> None:
    info = DatasetInfo.load(built)
    assert [item.wnid for item in info.classes] == [None, None, "n01440764"]  # sorted: S, c, n
    assert info.build["seed"] == OPTIONS.seed
    assert info.build["rejected"] == 0
    assert {path.name for path in built.iterdir() if path.name.startswith(".")} == set()


def test_the_shuffle_is_global() -> None:
    """10 classes in the order of the folders: no shard may keep anything of that order."""
    entries = [Entry(PLACE, f"{number}", number // 400) for number in range(4000)]
    shards = shuffled_shards(entries, 8, seed=0)
    assert sorted(entry for shard in shards for entry in shard) == sorted(entries)
    for shard in shards:
        counts = Counter(entry.class_index for entry in shard)
        assert len(counts) == 10
        assert max(counts.values()) < 85  # 50 expected, standard deviation 6.3
        changes = sum(a.class_index != b.class_index for a, b in zip(shard[1:], shard, strict=False))
        assert changes > 0.8 * len(shard)
    assert shuffled_shards(entries, 8, seed=1) != shards
    assert shuffled_shards(entries, 8, seed=0) == shards


@pytest.mark.parametrize("count", [1, 7, 13])
def test_shards_are_balanced(count: int) -> None:
    shards = shuffled_shards([Entry(PLACE, str(number), 0) for number in range(101)], count, seed=3)
    assert len(shards) == count
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("sizes", [(9, 10, 10), (10, 7, 10, 10), (0, 9, 1), (5,), (3, 3), (12, 0, 0, 1)])
def test_rebalanced_moves_as_few_as_possible(sizes: tuple[int, ...]) -> None:
    shards = [[Entry(PLACE, f"{i}/{j}", 0) for j in range(size)] for i, size in enumerate(sizes)]
    balanced = rebalanced(shards)
    assert sorted(chain(*balanced)) == sorted(chain(*shards))
    lengths = [len(shard) for shard in balanced]
    assert max(lengths) - min(lengths) <= 1
    moved = sum(len(set(after) - set(before)) for before, after in zip(shards, balanced, strict=True))
    assert moved == sum(max(0, length - size) for length, size in zip(lengths, sizes, strict=True))
    low = sum(sizes) // len(sizes)
    assert moved <= sum(max(0, low + (size > low) - size) for size in sizes) + sum(sizes) % len(sizes)


def test_the_same_bytes_with_any_number_of_workers(images: Path, built: Path, tmp_path: Path) -> None:
    build(open_source(images), tmp_path / "again", OPTIONS, workers=2)
    assert contents(tmp_path / "again") == contents(built)


def test_another_seed_gives_another_order_of_the_same_records(images: Path, built: Path, tmp_path: Path) -> None:
    build(open_source(images), tmp_path / "other", BuildOptions(2, 2, seed=1))
    first, second = (read_with_tensorflow(folder, "train") for folder in (built, tmp_path / "other"))
    assert [item[records.ENCODED] for item in first] != [item[records.ENCODED] for item in second]
    assert sorted(item[records.ENCODED] for item in first) == sorted(item[records.ENCODED] for item in second)


def test_small_data_sets_get_fewer_shards() -> None:
    assert BuildOptions().num_shards("train", 1_281_167) == 1024
    assert BuildOptions().num_shards("validation", 50_000) == 128
    assert BuildOptions().num_shards("train", 1000) == 15
    assert BuildOptions().num_shards("train", 3) == 1


def test_nasty_files_are_mended_or_listed(nasty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "shards"
    command = ["--source", str(nasty), "--output", str(output), "--workers", "1", "--train-shards", "2"]
    with pytest.raises(SystemExit) as leaving:
        build_shards.main(command)
    assert leaving.value.code == build_shards.EXIT_REJECTED
    lines = [json.loads(line) for line in (output / REJECTED_FILE).read_text().splitlines()]
    assert {line["path"] for line in lines} == set(NASTY)
    for line in lines:
        assert line["split"] == "train"
        assert NASTY[line["path"]] in line["reason"]

    shards = ShardSet.open(output, "train")
    assert np.bincount(shards.shard).tolist() == [67, 67]  # balanced although files were rejected
    found = {item[records.FILENAME]: item for item in read_with_tensorflow(output, "train")}
    for name in (b"cmyk.jpg", b"png.JPEG"):
        decoded = tf.io.decode_jpeg(found[name][records.ENCODED]).numpy()
        assert decoded.shape == (40, 50, 3)
    assert DatasetInfo.load(output).build["reencoded"] == {"4-component JPEG": 1, "PNG": 1}
    streams = capsys.readouterr()
    assert "encoded anew: 4-component JPEG (1), PNG (1)" in streams.out
    assert f"{len(NASTY)} files were rejected, listed in {output / REJECTED_FILE}" in streams.err


def test_rejected_files_that_are_allowed_are_no_failure(nasty: Path, tmp_path: Path) -> None:
    command = ["--source", str(nasty), "--output", str(tmp_path / "shards"), "--workers", "1"]
    assert build_shards.main([*command, "--max_rejected", str(len(NASTY))]) == 0


def test_short_side_makes_a_smaller_copy(images: Path, tmp_path: Path) -> None:
    build(open_source(images), tmp_path / "small", BuildOptions(2, 2, short_side=16, quality=80))
    shards = ShardSet.open(tmp_path / "small", "train")
    assert np.all(shards.sizes.min(axis=1) == 16)
    found = read_with_tensorflow(tmp_path / "small", "train")
    assert tf.io.decode_jpeg(found[0][records.ENCODED]).shape[:2] == tuple(shards.sizes[0])
    info = DatasetInfo.load(tmp_path / "small").build
    assert (info["short_side"], info["quality"], info["reencoded"]) == (16, 80, {"shrunk": 147})


def fail_at(monkeypatch: pytest.MonkeyPatch, record: int) -> None:
    """The disk is full when the builder frames this record."""
    frame = records.frame
    count = 0

    def full(data: bytes) -> bytes:
        nonlocal count
        count += 1
        if count == record:
            raise OSError(errno.ENOSPC, "No space left on device")
        return frame(data)

    monkeypatch.setattr(shard_writer.records, "frame", full)


@pytest.mark.parametrize(("record", "whole"), [(1, []), (70, [0]), (140, [0, 1])])
def test_a_full_disk_leaves_only_whole_shards_and_the_next_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, images: Path, built: Path, tmp_path: Path, record: int, whole: list[int]
) -> None:
    output = tmp_path / "shards"
    with monkeypatch.context() as patch:
        fail_at(patch, record)
        with pytest.raises(UserError, match=r"shards: No space left on device; .* the same command goes on"):
            build(open_source(images), output, OPTIONS)
    expected = {name for i in whole for name in (shard_name("train", i, 2), shard_name("train", i, 2) + ".idx")}
    found = {path.name for path in output.iterdir() if path.is_file()}
    assert found - {"train-sizes.npy"} == expected
    with pytest.raises(UserError, match=r"dataset\.json"):
        ShardSet.open(output, "train")

    before = {name: (output / name).stat().st_mtime_ns for name in expected}
    build(open_source(images), output, OPTIONS)
    assert contents(output) == contents(built)
    assert {name: (output / name).stat().st_mtime_ns for name in expected} == before


def test_a_killed_build_goes_on_and_gives_the_same_bytes(images: Path, built: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    flags = ["--train-shards=2", "--validation-shards=2", "--workers=2"]
    command = [sys.executable, "-m", "tools.build_shards", "--source", str(images), "--output", str(output), *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not list(output.glob("train-00000*")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    # 2 if the kill came too late: the data set was there already.
    assert result.returncode in (0, 2), result.stderr
    assert contents(output) == contents(built)


def test_workers_end_with_their_parent() -> None:
    """However it ends: the pipe that they share is closed once the last of them is gone."""
    script = """
import time
from pipelines.pool import run_tasks
for _ in run_tasks(time.sleep, [0, 0, 600, 600], 2):
    print("working", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def test_a_shard_that_was_damaged_in_between_is_written_again(
    monkeypatch: pytest.MonkeyPatch, images: Path, built: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    with monkeypatch.context() as patch:
        fail_at(patch, 140)
        with pytest.raises(UserError):
            build(open_source(images), output, OPTIONS)
    (output / shard_name("train", 0, 2)).write_bytes(b"cut off")
    (output / f"{shard_name('train', 1, 2)}.idx").unlink()
    build(open_source(images), output, OPTIONS)
    assert contents(output) == contents(built)


def test_an_unfinished_build_of_something_else_is_not_continued(
    monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 70)
        with pytest.raises(UserError):
            build(open_source(images), tmp_path / "shards", OPTIONS)
    with pytest.raises(UserError, match="unfinished build of other images or options"):
        build(open_source(images), tmp_path / "shards", BuildOptions(2, 2, seed=5))


def test_nothing_is_overwritten(images: Path, built: Path, tmp_path: Path) -> None:
    before = contents(built)
    with pytest.raises(UserError, match="holds a data set already"):
        build(open_source(images), built, OPTIONS)
    assert contents(built) == before
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="the folder is not empty"):
        build(open_source(images), tmp_path, OPTIONS)
    assert contents(tmp_path) == {"mine.txt": b""}


def test_a_source_with_nothing_but_rubbish(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "train" / "a"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.jpg").write_text("rubbish")
    with pytest.raises(UserError, match=r"3 of 3 train images cannot be decoded; the first is train/a/0.jpg: not an"):
        build(open_source(tmp_path / "source"), tmp_path / "shards", OPTIONS)
    assert not list((tmp_path / "shards").glob("dataset.json"))


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
        ((), "there is no folder train/<class>/"),
        (("train/a.jpg",), "no class folders"),
        (("train/a/1.jpg/", "train/b/1.jpg"), "a: the class has no training images"),
        (("train/a/1.jpg", "train/b/"), "b: the class has no training images"),
        (("train/a/1.jpg", "val/c/1.jpg"), "c: no such class"),
        (("train/a/1.jpg", "val/1.jpg"), "no validation images"),
    ],
)
def test_layouts_that_are_none(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
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


@pytest.mark.parametrize(
    "flags",
    [["--quality", "0"], ["--short-side", "0"], ["--train-shards", "0"], ["--seed", "-1"], ["--source", "/no/such"]],
)
def test_wrong_flags_get_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    command = ["--source", str(images), "--output", str(tmp_path / "shards"), *flags]
    assert build_shards.main(command) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not (tmp_path / "shards").exists()
