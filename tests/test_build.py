"""From folders to shards: content, order, balance."""

import json
import os
import re
import shutil
import threading
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kimagenet.commands import build_shards
from pipelines import AugmentSpec, BatchSpec, ShardSet, UserError
from pipelines.building import shard_writer
from pipelines.building.build import REJECTED_FILE, build, rebalanced, shuffled_shards
from pipelines.building.clean import ImageRejected
from pipelines.building.options import BuildOptions, as_planned, decide, default_shards, samples_of
from pipelines.building.sample import take_sample
from pipelines.building.sources import Entry, Place, Stamp, open_source
from pipelines.shards import records
from pipelines.shards.dataset import DatasetInfo, shard_name
from pipelines.shards.index import read_index, scan
from tests.helpers.builds import CLASSES, OPTIONS, TRAIN_PER_CLASS, VALIDATION_PER_CLASS, contents, read_with_tensorflow
from tests.helpers.data import jpeg, photo

PLACE = Place("", "")


@pytest.fixture
def nasty(images: Path, tmp_path: Path) -> Path:
    """A copy of `images` with some other files and damaged images in the first class."""
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
    (folder / "nine bytes short.jpg").write_bytes(good[:-9])
    (folder / "notes.txt").write_text("not an image")
    (folder / "folder.jpg").mkdir()
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (root / "train" / "README").write_text("in no class folder")
    return root


NASTY = {
    f"train/{CLASSES[0]}/empty.jpg": "empty",
    f"train/{CLASSES[0]}/half.jpg": "runcated",
    f"train/{CLASSES[0]}/nine bytes short.jpg": "truncated",
    f"train/{CLASSES[0]}/notes.txt": "not an image",
    f"train/{CLASSES[0]}/folder.jpg": "a folder, not a file",
    f"train/{CLASSES[0]}/gone.jpg": "a link to a file that is missing",
    "train/README": "not in a class folder",
}


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert 0.9 < (info.splits["train"].mixing or 0) < 1.1
    assert {path.name for path in built.iterdir() if path.name.startswith(".")} == set()


def test_the_shuffle_is_global() -> None:
    """The entries are in the order of 10 class folders; no shard may keep any of that order."""
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


@pytest.mark.parametrize(
    ("version", "expected"), [(1, [[9, 6, 0, 2, 1], [4, 7, 5, 3, 8]]), (2, [[1, 8, 7, 0, 6], [4, 9, 2, 5, 3]])]
)
def test_a_shuffle_stays_as_it_is(version: int, expected: list[list[int]]) -> None:
    """So that a build gives the same bytes with another NumPy."""
    entries = [Entry(PLACE, "", number) for number in range(10)]
    shards = shuffled_shards(entries, 2, 3, version)
    assert [[entry.class_index for entry in shard] for shard in shards] == expected


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


@pytest.mark.slow
def test_another_seed_gives_another_order_of_the_same_records(images: Path, built: Path, tmp_path: Path) -> None:
    build(open_source(images), tmp_path / "other", BuildOptions(2, 2, seed=1))
    first, second = (read_with_tensorflow(folder, "train") for folder in (built, tmp_path / "other"))
    assert [item[records.ENCODED] for item in first] != [item[records.ENCODED] for item in second]
    assert sorted(item[records.ENCODED] for item in first) == sorted(item[records.ENCODED] for item in second)


@pytest.mark.parametrize(
    ("split", "num_bytes", "count"),
    [
        ("train", 140e9, 1024),  # ImageNet
        ("validation", 6.7e9, 53),
        ("train", 81e6, 16),  # 64,000 images of 64 pixels
        ("train", 0, 16),
        ("train", 10e9, 79),
        ("validation", 1e12, 128),
    ],
)
def test_the_number_of_shards_follows_the_bytes(split: str, num_bytes: float, count: int) -> None:
    assert default_shards(split, num_bytes) == count


def test_small_data_sets_get_fewer_shards() -> None:
    options = BuildOptions(1024, 16)
    assert options.num_shards("train", 1_281_167) == 1024
    assert options.num_shards("validation", 50_000) == 16
    assert options.num_shards("train", 1000) == 15
    assert options.num_shards("train", 3) == 1


def test_numbers_of_shards_are_those_that_are_given(images: Path) -> None:
    source = open_source(images)
    options = BuildOptions(train_shards=7)
    decided = decide(options, source, samples_of(source, options))
    assert (decided.train_shards, decided.validation_shards) == (7, 16)
    plan = {"options": {"train_shards": 1024, "validation_shards": 128}}  # of an earlier version
    decided = decide(as_planned(options, plan), source, samples_of(source, options))
    assert (decided.train_shards, decided.validation_shards) == (7, 128)


def test_a_sample_is_of_the_images_as_they_are_stored(images: Path) -> None:
    entries = open_source(images).splits["train"]
    sizes = [len(entry.read()) for entry in entries]
    whole = take_sample(entries, 95, None)
    assert whole is not None
    assert min(sizes) < whole.image_bytes < max(sizes)
    assert take_sample(entries, 95, None) == whole
    small = take_sample(entries, 50, 16)
    assert small is not None
    assert small.short_side == 16
    assert small.image_bytes < whole.image_bytes


def test_a_sample_leaves_out_what_cannot_be_decoded(tmp_path: Path) -> None:
    place = Place(str(tmp_path), "")
    (tmp_path / "good.jpg").write_bytes(good := jpeg(photo(np.random.default_rng(0), 0, 40, 50)))
    (tmp_path / "bad.jpg").write_bytes(b"damaged")
    entries = [Entry(place, name, 0) for name in ("good.jpg", "bad.jpg", "gone.jpg")]
    sample = take_sample(entries, 95, None)
    assert sample is not None
    assert (sample.image_bytes, sample.short_side) == (len(good), 40)
    assert take_sample(entries[1:], 95, None) is None


def test_the_command_says_how_many_shards_of_which_size_there_will_be(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--source", str(images), "--workers", "1", "--output"]
    assert build_shards.main([*command, str(tmp_path / "first")]) == 0
    assert re.search(
        r"^2 train shards of about \d+ kB, 1 validation shard of about \d+ kB$", capsys.readouterr().out, re.MULTILINE
    )
    assert build_shards.main([*command, str(tmp_path / "second"), "--train-shards=1024"]) == 0
    assert "2 train shards of about " in (said := capsys.readouterr().out)
    assert " (not 1,024: a shard has at least 64 images), 1 validation shard" in said


def test_the_command_says_that_pictures_are_far_too_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "source" / "train" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (1300, 900)).save(folder / "large.jpg")
    command = ["--source", str(tmp_path / "source"), "--workers", "1", "--output"]
    assert build_shards.main([*command, str(tmp_path / "first")]) == 0
    line = "most pictures are far larger than training at 224 px needs (their median shorter side has 900 px) and slow"
    said = capsys.readouterr().out
    assert f"{line} to decode; `--short-side 512` stores smaller ones\n" in said
    assert build_shards.main([*command, str(tmp_path / "second"), "--short-side=512"]) == 0
    assert "far larger" not in capsys.readouterr().out


def test_files_are_read_ahead_of_the_decoder(
    images: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several at once, which a network file system needs; the shards have the same bytes."""
    together, read = threading.Barrier(3), shard_writer._read

    def read_together(entry: Entry) -> tuple[bytes, Stamp]:
        together.wait(60)  # nobody passes before three are here: shards of 66, 66 and 15 images
        return read(entry)

    monkeypatch.setattr(shard_writer, "_read", read_together)
    monkeypatch.setattr(shard_writer, "_READERS", 3)
    build(open_source(images), tmp_path / "again", OPTIONS)
    assert contents(tmp_path / "again") == contents(built)


@pytest.mark.slow
def test_nasty_files_are_encoded_again_or_listed(
    nasty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tensorflow as tf

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
    assert "encoded again: 4-component JPEG (1), PNG (1)" in streams.out
    assert f"{len(NASTY)} files were rejected and are listed in {output / REJECTED_FILE}" in streams.err


def test_allowed_rejected_files_give_exit_code_0(nasty: Path, tmp_path: Path) -> None:
    command = ["--source", str(nasty), "--output", str(tmp_path / "shards"), "--workers", "1"]
    assert build_shards.main([*command, "--max_rejected", str(len(NASTY))]) == 0


@pytest.mark.slow
def test_short_side_makes_a_smaller_copy(images: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    build(open_source(images), tmp_path / "small", BuildOptions(2, 2, short_side=16, quality=80))
    shards = ShardSet.open(tmp_path / "small", "train")
    assert np.all(shards.sizes.min(axis=1) == 16)
    found = read_with_tensorflow(tmp_path / "small", "train")
    assert tf.io.decode_jpeg(found[0][records.ENCODED]).shape[:2] == tuple(shards.sizes[0])
    info = DatasetInfo.load(tmp_path / "small").build
    assert (info["short_side"], info["quality"], info["reencoded"]) == (16, 80, {"shrunk": 147})


def test_a_source_without_any_good_image(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "train" / "a"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.jpg").write_text("rubbish")
    with pytest.raises(UserError, match=r"3 of 3 train images cannot be decoded, the first is train/a/0.jpg: not an"):
        build(open_source(tmp_path / "source"), tmp_path / "shards", OPTIONS)
    assert not list((tmp_path / "shards").glob("dataset.json"))


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


@pytest.mark.slow
def test_a_fifo_among_images_blocks_neither_the_builder_nor_a_reader_of_images(images: Path, tmp_path: Path) -> None:
    from pipelines.images import ImageReader

    source = shutil.copytree(images, tmp_path / "source")
    fifo = source / "train" / CLASSES[0] / "fifo.JPEG"
    os.mkfifo(fifo)
    report = build(open_source(source), tmp_path / "shards", OPTIONS)
    assert [(item.path, item.reason) for item in report.rejected] == [
        (f"train/{CLASSES[0]}/fifo.JPEG", "not a regular file")
    ]
    with pytest.raises(ImageRejected, match="not a regular file"):
        ImageReader(BatchSpec(1, 8), AugmentSpec.evaluation()).image(fifo)
