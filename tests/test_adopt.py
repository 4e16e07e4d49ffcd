"""Makes indexes and dataset.json for shards that lack them, for example the original project's."""

import io
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kimagenet.commands import build_index
from pipelines import ShardSet, UserError
from pipelines.building import shard_scan
from pipelines.building.adopt import adopt_shards
from pipelines.shards import records
from pipelines.shards.dataset import DATASET_FILE, DatasetInfo
from pipelines.system.reading import FileReader
from tests.helpers.data import NUM_CLASSES, TRAIN_RECORDS, jpeg, photo, write_tiny_dataset

WNIDS = ("n01440764", "n01443537", "n01484850")


def without_sidecars(directory: Path) -> Path:
    for pattern in ("*.idx", "*.npy", DATASET_FILE):
        for path in directory.glob(pattern):
            path.unlink()
    return directory


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny_dataset, tmp_path / "shards")


@pytest.fixture
def originals(tmp_path: Path) -> tuple[Path, list[tuple[int, int]]]:
    """Shards written by TensorFlow as in the original project, with protobuf's order of features, and their sizes."""
    import tensorflow as tf

    folder = tmp_path / "original"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sizes = []
    for shard in range(2):
        with tf.io.TFRecordWriter(str(folder / f"train-{shard:05d}-of-00002")) as writer:
            for number in range(6):
                label = number % 3
                height, width = (int(side) for side in rng.integers(30, 90, 2))
                sizes.append((height, width))
                writer.write(_original(jpeg(photo(rng, label, height, width)), label + 1, height, width))
    return folder, sizes


def _original(encoded: bytes, label: int, height: int, width: int) -> bytes:
    import tensorflow as tf

    def text(value: str) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))

    def number(value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    features = {
        records.HEIGHT: number(height),
        records.WIDTH: number(width),
        records.COLORSPACE: text("RGB"),
        records.CHANNELS: number(3),
        records.LABEL: number(label),
        records.SYNSET: text(WNIDS[label - 1]),
        records.TEXT: text(f"fish {label}, a fish"),
        records.FORMAT: text("JPEG"),
        records.FILENAME: text("some.JPEG"),
        records.ENCODED: tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_shards_of_the_original_project(originals: tuple[Path, list[tuple[int, int]]], workers: int) -> None:
    folder, sizes = originals
    info = adopt_shards(folder, workers=workers)
    assert info.label_base == 1
    assert [(item.name, item.wnid) for item in info.classes] == [
        (f"fish {i + 1}, a fish", wnid) for i, wnid in enumerate(WNIDS)
    ]
    shards = ShardSet.open(folder, "train")
    assert shards.num_records == 12
    assert shards.sizes.tolist() == [list(size) for size in sizes]


@pytest.mark.parametrize("label_base", [0, 1])
def test_sidecars_are_made_again(tmp_path: Path, label_base: int) -> None:
    """The tiny records have no sizes and no names: sizes come from the headers of the images."""
    write_tiny_dataset(tmp_path, label_base=label_base)
    before = {split: ShardSet.open(tmp_path, split) for split in ("train", "validation")}
    indexes = {path.name: path.read_bytes() for path in tmp_path.glob("*.idx")}
    adopt_shards(without_sidecars(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.idx")} == indexes
    for split, expected in before.items():
        found = ShardSet.open(tmp_path, split)
        np.testing.assert_array_equal(found.sizes, expected.sizes)
        np.testing.assert_array_equal(found.offsets, expected.offsets)
        assert (found.label_base, found.num_classes) == (label_base, NUM_CLASSES)


@pytest.mark.parametrize("is_sorted", [False, True])
def test_sorted_shards_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture, is_sorted: bool) -> None:
    write_tiny_dataset(tmp_path, is_sorted=is_sorted)
    assert not ShardSet.open(tmp_path, "train").is_sorted  # nobody has looked yet
    info = adopt_shards(without_sidecars(tmp_path))
    found = info.splits["train"].mixing
    assert found == pytest.approx(0.67 if is_sorted else 1.0, abs=0.05)
    assert ShardSet.open(tmp_path, "train").is_sorted == is_sorted
    notices = [message for message in caplog.messages if "sorted by class" in message]
    what = f"{tmp_path}: the train shards are sorted by class (64 neighbours have {found:.0%} of the classes of "
    assert [notice.startswith(what) for notice in notices] == [True] * is_sorted


def test_classes_checksums_and_quarantine_of_dataset_json_are_kept(dataset: Path) -> None:
    known = DatasetInfo.load(dataset)
    part = known.splits["train"]
    shards = [shard.model_copy(update={"crc32c": "0123abcd"}) for shard in part.shards]
    train = part.model_copy(update={"quarantine": [3, 5], "shards": shards})
    known = known.model_copy(update={"splits": {**known.splits, "train": train}, "build": {"seed": 7}})
    known.save(dataset)
    for path in dataset.glob("*.idx"):
        path.unlink()
    found = adopt_shards(dataset)
    mixing = {split: {"mixing": part.mixing} for split, part in found.splits.items()}
    splits = {split: part.model_copy(update=mixing[split]) for split, part in known.splits.items()}
    assert found == known.model_copy(update={"splits": splits})
    assert len(ShardSet.open(dataset, "train").usable) == TRAIN_RECORDS - 2


def test_several_shards_are_read_at_once(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header says where the next one is, so of one shard only one request can be under way."""
    together, open_shard = threading.Barrier(5), shard_scan.open_shard

    def open_together(path: Path) -> FileReader:
        together.wait(60)  # nobody passes before all shards are here
        return open_shard(path)

    known = adopt_shards(dataset)
    monkeypatch.setattr(shard_scan, "open_shard", open_together)
    assert adopt_shards(dataset) == known


def test_temporary_files_of_a_killed_command_are_removed(dataset: Path) -> None:
    leftover, other = dataset / ".train-00000-of-00003.idx.123.tmp", dataset / ".notes.tmp"
    leftover.write_bytes(b"half")
    other.write_bytes(b"somebody's")
    adopt_shards(dataset)
    assert not leftover.exists()
    assert other.exists()


def test_shards_that_changed_lose_checksum_and_quarantine(dataset: Path) -> None:
    known = DatasetInfo.load(dataset)
    train = known.splits["train"].model_copy(update={"quarantine": [3, TRAIN_RECORDS - 1]})
    known.model_copy(update={"splits": {**known.splits, "train": train}}).save(dataset)
    shutil.copy(dataset / "train-00000-of-00003", dataset / "train-00002-of-00003")
    info = adopt_shards(dataset)
    assert info.splits["train"].quarantine == [3]  # in a shard that is as it was
    assert info.classes == known.classes


@pytest.mark.slow
def test_the_label_base_can_be_given(originals: tuple[Path, list[tuple[int, int]]]) -> None:
    folder, _ = originals
    assert adopt_shards(folder, label_base=0).num_classes == 4
    assert adopt_shards(folder, label_base=1).num_classes == 3


def cut_the_last_record(dataset: Path) -> None:
    path = dataset / "train-00001-of-00003"
    path.write_bytes(path.read_bytes()[:-10])


def remove_a_shard(dataset: Path) -> None:
    (dataset / "train-00001-of-00003").unlink()


def mix_two_data_sets(dataset: Path) -> None:
    shutil.copy(dataset / "train-00001-of-00003", dataset / "train-00001-of-00004")


def forget_the_label(dataset: Path) -> None:
    data = records.frame(records.encode_example({records.ENCODED: b"x"}))
    (dataset / "train-00001-of-00003").write_bytes(data)


def forget_the_image(dataset: Path) -> None:
    data = records.frame(records.encode_example({records.LABEL: 1}))
    (dataset / "train-00001-of-00003").write_bytes(data)


def store_no_image(dataset: Path) -> None:
    data = records.frame(records.encode_example({records.LABEL: 1, records.ENCODED: b"no image"}))
    (dataset / "train-00001-of-00003").write_bytes(data)


def store_no_example(dataset: Path) -> None:
    (dataset / "train-00001-of-00003").write_bytes(records.frame(b"\x07 what is this"))


def use_a_label_beyond_the_classes(dataset: Path) -> None:
    data = records.frame(
        records.encode_example({records.LABEL: 99, records.ENCODED: jpeg(photo(np.random.default_rng(0), 0, 9, 9))})
    )
    (dataset / "train-00001-of-00003").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_the_last_record, "train-00001-of-00003: record .* at byte .*: it is cut off"),
        (remove_a_shard, "train-00001-of-00003: the shard is missing"),
        (mix_two_data_sets, "shards of several data sets"),
        (forget_the_label, "train-00001-of-00003: record 0 at byte 0: image/class/label is missing"),
        (forget_the_image, "record 0 at byte 0: image/encoded is missing"),
        (store_no_image, "record 0 at byte 0: neither the record nor its image says the size"),
        (store_no_example, "train-00001-of-00003: record 0 at byte 0"),
        (use_a_label_beyond_the_classes, "label 99, but dataset.json has 10 classes"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_named_and_nothing_is_lost(dataset: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(dataset)
    before = (dataset / DATASET_FILE).read_bytes()
    with pytest.raises(UserError, match=message):
        adopt_shards(dataset)
    assert (dataset / DATASET_FILE).read_bytes() == before


def test_the_command_line(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_index.main([str(without_sidecars(dataset)), "--workers=1"]) == 0
    said = capsys.readouterr().out
    assert "101 train records in 3 shards; 37 validation records in 2 shards; 10 classes, first label 1" in said
    assert build_index.main([str(dataset / "nowhere")]) == 2
    assert capsys.readouterr().err == f"error: {dataset / 'nowhere'}: no such folder\n"


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no shards .* in this folder"):
        adopt_shards(tmp_path)


def sized(encoded: bytes, height: int, width: int) -> bytes:
    features = {records.ENCODED: encoded, records.LABEL: 1, records.HEIGHT: height, records.WIDTH: width}
    return records.frame(records.encode_example(features))


def png(height: int, width: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "PNG")
    return stream.getvalue()


IMAGES = {
    "JPEG": jpeg(photo(np.random.default_rng(0), 0, 20, 30)),
    "progressive JPEG": jpeg(photo(np.random.default_rng(0), 0, 20, 30), kind=2),
    "PNG": png(20, 30),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("stored", [(10, 15), (40, 60), (30, 20)])
def test_the_image_decides_its_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, stored: tuple[int, int]
) -> None:
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(sized(IMAGES[kind], *stored) + sized(IMAGES[kind], 20, 30) + sized(IMAGES[kind], *stored))
    adopt_shards(tmp_path)
    assert ShardSet.open(tmp_path, "train").sizes.tolist() == [[20, 30]] * 3
    first = f"record 0 says {stored[0]} × {stored[1]} pixels, but its image has 20 × 30"
    what = f"the features of 2 records have wrong image sizes (the first: {first}); the sizes of the images are used"
    assert caplog.messages[0] == f"{path}: {what}"
    assert ["PNG (3)" in message for message in caplog.messages[1:]] == [True] * (kind == "PNG")


def test_the_features_decide_if_the_image_has_no_header(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training reports the record as corrupt; the other records can be used."""
    (tmp_path / "train-00000-of-00001").write_bytes(sized(b"no image", 7, 8) + sized(IMAGES["JPEG"], 20, 30))
    adopt_shards(tmp_path)
    assert ShardSet.open(tmp_path, "train").sizes.tolist() == [[7, 8], [20, 30]]
    assert caplog.messages == []


def test_zero_in_a_header_is_no_size(tmp_path: Path) -> None:
    """As in a JPEG that gives its height only behind its first scan."""
    data = bytearray(IMAGES["JPEG"])
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 7] = 0, 0
    (tmp_path / "train-00000-of-00001").write_bytes(sized(bytes(data), 20, 30))
    adopt_shards(tmp_path)
    assert ShardSet.open(tmp_path, "train").sizes.tolist() == [[20, 30]]
