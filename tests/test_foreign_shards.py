"""Shards of tensorflow-datasets and others are used where they are; nothing is written into them."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from kimagenet.commands import build_index, build_shards
from pipelines import ShardSet, UserError
from pipelines.building.adopt import adopt_shards
from pipelines.building.check import check_shards, quarantine
from pipelines.shards import records, shard_names
from pipelines.shards.corrupt import find_corrupt
from pipelines.shards.dataset import DatasetInfo, Features
from pipelines.shards.index import scan, write_index
from pipelines.system.pages import drop_pages, share_in_memory
from tests.helpers import writers
from tests.helpers.data import jpeg, photo, write_tiny_dataset
from tests.helpers.layouts import Classes, class_folders
from tests.helpers.sources import nasty, pictures
from tests.helpers.tfds_files import Picture, write_files, write_split

CLASSES = ("cat", "dog", "ox")
TFDS = Features(image="image", label="label", filename="file_name")


def some(count: int, seed: int = 0, label: int | None = None) -> list[Picture]:
    rng = np.random.default_rng(seed)
    return [
        Picture(jpeg(photo(rng, i % 3, *rng.integers(30, 60, 2))), i % 3 if label is None else label, f"{i}.JPEG")
        for i in range(count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As tensorflow-datasets leaves it: 20 training and 6 validation records in 3 classes."""
    folder = tmp_path / "pets" / "1.0.0"
    write_split(folder, "train", some(20), shards=2)
    write_split(folder, "validation", some(6, seed=1))
    write_files(folder, CLASSES)
    return folder


def shard_files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of each shard."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.iterdir()
        if shard_names.parse(path.name)
    }


@pytest.mark.parametrize(
    ("name", "split", "number", "count"),
    [
        ("train-00003-of-01024", "train", 3, 1024),
        ("imagenet2012-train.tfrecord-00003-of-01024", "train", 3, 1024),
        ("cifar10-test.tfrecord-00000-of-00001", "test", 0, 1),
        ("flowers_train_00003-of-00005.tfrecord", "train", 3, 5),
        ("my_flowers_validation_00003-of-00005.tfrecord", "validation", 3, 5),
        ("validation-00003-of-00005.tfrecord", "validation", 3, 5),
        ("train.tfrecord-00003-of-00005", "train", 3, 5),
        ("a-train-00003-of-00005.tfrecords", "train", 3, 5),
    ],
)
def test_names_of_shards(name: str, split: str, number: int, count: int) -> None:
    found = shard_names.parse(name)
    assert found is not None
    assert (found.split, found.number, found.total) == (split, number, count)
    assert found.with_number(number) == name


@pytest.mark.parametrize(
    "name",
    [
        "train-00003-of-01024.idx",
        "pets-train.tfrecord-00003-of-01024.idx",
        "train.tfrecord",
        "train-3-of-5",
        "train-sizes.npy",
    ],
)
def test_other_names_are_no_shards(name: str) -> None:
    assert shard_names.parse(name) is None


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_of_tensorflow_datasets(folder: Path, workers: int) -> None:
    before = shard_files(folder)
    info = adopt_shards(folder, workers=workers)
    assert shard_files(folder) == before
    assert info == DatasetInfo.load(folder)
    assert (info.features, info.label_base) == (TFDS, 0)
    assert [item.name for item in info.classes] == list(CLASSES)
    assert {split: part.num_records for split, part in info.splits.items()} == {"train": 20, "validation": 6}
    shards = ShardSet.open(folder, "train")
    stored = [shards.read(record) for record in range(20)]
    assert sorted(stored) == sorted((picture.encoded, picture.label) for picture in some(20))
    assert shards.labels.tolist() == [label for _, label in stored]
    assert check_shards(folder).faults == ()
    assert adopt_shards(folder) == info  # once more


def test_without_dataset_json_they_can_be_checked(folder: Path) -> None:
    report = check_shards(folder)
    assert report.faults[0].file == "dataset.json"
    assert not [fault for fault in report.faults if fault.record is not None]


def test_wordnet_ids_become_names(folder: Path) -> None:
    write_files(folder, ("n01440764", "n01443537", "n01484850"))
    classes = adopt_shards(folder).classes
    assert (classes[0].name, classes[0].wnid) == ("tench, Tinca tinca", "n01440764")


def test_labels_count_from_zero_even_if_no_record_has_it(folder: Path) -> None:
    shutil.rmtree(folder)
    write_split(folder, "train", some(9, label=2))
    write_files(folder, CLASSES)
    info = adopt_shards(folder)
    assert (info.label_base, info.num_classes) == (0, 3)
    with pytest.raises(UserError, match="own files number its classes from 0, not from 1; choose the label base 0"):
        adopt_shards(folder_without_json(folder), label_base=1)


def folder_without_json(folder: Path) -> Path:
    (folder / "dataset.json").unlink()
    return folder


def test_a_split_without_labels_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As ImageNet's test images in tensorflow-datasets."""
    write_split(folder, "test", some(4, label=-1))
    assert set(adopt_shards(folder).splits) == {"train", "validation"}
    assert caplog.messages == [f"{folder}: the test shards are left out: their records have no labels (-1)"]
    for split in ("train", "validation"):
        for path in folder.glob(f"*-{split}*"):
            path.unlink()
    with pytest.raises(UserError, match=r"the records have no labels \(label is -1\)"):
        adopt_shards(folder_without_json(folder))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"left": {"image": {}}, "image": {"text": {}}, "right": {"image": {}}}, "several features that are image"),
        ({"label": {"sequence": {}}}, r"no feature that is class label \(features: image, label, file_name\)"),
        ({"coarse_label": {"classLabel": {"numClasses": "2"}}}, ""),
    ],
)
def test_data_sets_without_one_image_and_one_label(folder: Path, more: dict, message: str) -> None:
    write_files(folder, CLASSES, **more)
    if not message:  # the feature that is called label
        assert adopt_shards(folder).features == TFDS
        return
    with pytest.raises(UserError, match=rf"features\.json: it has {message}"):
        adopt_shards(folder)


def test_names_that_do_not_fit_are_refused(folder: Path) -> None:
    (folder / "label.labels.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"label\.labels\.txt: has 2 names, but features\.json says 3 classes"):
        adopt_shards(folder)
    write_files(folder, CLASSES[:2])
    with pytest.raises(UserError, match="a record has label 2, but the data set's own files name 2 classes"):
        adopt_shards(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"featuresDict": {}}'])
def test_damaged_features_are_named(folder: Path, text: str) -> None:
    (folder / "features.json").write_text(text)
    with pytest.raises(UserError, match=r"features\.json: not the features of a data set of tensorflow-datasets"):
        adopt_shards(folder)


def test_the_first_record_decides_without_files(folder: Path) -> None:
    (folder / "features.json").unlink()
    info = adopt_shards(folder)
    assert (info.features, info.label_base, info.num_classes) == (TFDS, 0, 3)
    assert info.classes[0].name == "class 0"


def test_features_that_nobody_knows_are_named(tmp_path: Path) -> None:
    data = records.frame(records.encode_example({"picture": b"x", "kind": 1}))
    (tmp_path / "train-00000-of-00001").write_bytes(data)
    with pytest.raises(UserError, match=r"image/class/label is missing \(the record has kind, picture\)"):
        adopt_shards(tmp_path)


def test_a_missing_shard_of_theirs_is_named(folder: Path) -> None:
    (folder / "pets-train.tfrecord-00000-of-00002").unlink()
    with pytest.raises(UserError, match=r"pets-train\.tfrecord-00000-of-00002: the shard is missing"):
        adopt_shards(folder)


def test_two_data_sets_in_one_folder_are_named(folder: Path) -> None:
    write_split(folder, "train", some(3), name="birds")
    what = (
        r"several data sets, birds-train\.tfrecord-\*-of-00001 and pets-train\.tfrecord-\*-of-00002; keep one of them"
    )
    with pytest.raises(UserError, match=what):
        adopt_shards(folder)


def odd_pictures() -> dict[str, bytes]:
    files = nasty(some(1)[0].encoded)
    return {name: data for name in ("png.JPEG", "turned.JPEG", "cmyk.JPEG", "a.gif") if (data := files[name])}


def test_images_that_would_be_encoded_again_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = [Picture(data, 1, name) for name, data in odd_pictures().items()]
    write_split(folder, "train", [*some(5), *odd], shards=2)
    info = adopt_shards(folder)
    assert info.splits["train"].quarantine == []
    (message,) = caplog.messages
    assert (
        "4 records are no plain upright JPEG: 4-component JPEG (1), EXIF orientation 6 (1), GIF (1), PNG (1)" in message
    )
    assert "the first is record 3 of pets-train.tfrecord-00000-of-00002" in message
    assert f"--source {folder} --output SHARDS`" in message
    assert f"tools.build_index {folder} --quarantine`" in message


def test_images_that_would_be_encoded_again_can_be_left_out(folder: Path, capsys: pytest.CaptureFixture) -> None:
    odd = [Picture(data, 1, name) for name, data in odd_pictures().items()]
    write_split(folder, "train", [*some(5), *odd])
    assert build_index.main([str(folder), "--workers=1", "--quarantine"]) == 0
    assert "4 records are no plain upright JPEG" in capsys.readouterr().err
    assert DatasetInfo.load(folder).splits["train"].quarantine == [5, 6, 7, 8]
    assert ShardSet.open(folder, "train").usable.tolist() == [0, 1, 2, 3, 4]
    assert build_index.main([str(folder), "--workers=1"]) == 0  # it keeps the quarantine, and says nothing
    assert capsys.readouterr().err == ""
    assert len(ShardSet.open(folder, "train").usable) == 5


def test_images_that_would_be_encoded_again_can_be_built(folder: Path, tmp_path: Path) -> None:
    odd = [Picture(data, 1, name) for name, data in odd_pictures().items()]
    write_split(folder, "train", [*some(70), *odd])
    adopt_shards(folder)
    assert build_shards.main(["--source", str(folder), "--output", str(tmp_path / "shards"), "--workers=1"]) == 0
    info = DatasetInfo.load(tmp_path / "shards")
    assert info.build["reencoded"] == {"4-component JPEG": 1, "EXIF orientation 6": 1, "GIF": 1, "PNG": 1}
    assert [item.name for item in info.classes] == list(CLASSES)
    shards = ShardSet.open(tmp_path / "shards", "train")
    stored = [shards.read(record) for record in range(shards.num_records)]
    kept = {(image.encoded, image.label - shards.label_base) for image in stored}
    assert shards.num_records == 74
    assert kept >= {(picture.encoded, picture.label) for picture in some(70)}
    assert check_shards(tmp_path / "shards").faults == ()


@pytest.mark.slow
def test_an_image_that_is_no_jpeg_is_named_if_a_loader_does_not_read_it(folder: Path) -> None:
    """tfdata refuses a PNG, although TensorFlow's decoder of JPEGs reads it."""
    write_split(folder, "train", [*some(5), Picture(odd_pictures()["png.JPEG"], 1)])
    adopt_shards(folder)
    shards = ShardSet.open(folder, "train")
    assert find_corrupt(shards, range(5)) == []
    (found,) = find_corrupt(shards, range(6))
    assert (found.record, found.reason[:22]) == (5, "its image is no JPEG, ")


def test_faulty_records_can_be_quarantined(folder: Path) -> None:
    write_split(folder, "train", [*some(5), Picture(b"no image", 1), Picture(some(1)[0].encoded[:-9], 1)])
    with pytest.raises(UserError, match=r"record 5 at byte .*: neither the record nor its image says the size"):
        adopt_shards(folder)
    quarantine(check_shards(folder))
    assert DatasetInfo.load(folder).splits["train"].quarantine == [5, 6]
    assert DatasetInfo.load(folder).features == TFDS


def test_data_sets_of_earlier_releases_open(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path)
    assert b"features" not in (tmp_path / "dataset.json").read_bytes()
    assert ShardSet.open(tmp_path, "train").features == Features()


def test_only_heads_are_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of records of 1 MB each, at most some pages."""
    noise = np.random.default_rng(0).integers(0, 255, 1 << 20, np.uint8).tobytes()
    large = [Picture(picture.encoded + noise, picture.label) for picture in some(20)]
    write_split(folder, "train", large, shards=2)
    paths = sorted(folder.glob("pets-train*"))
    for path in paths:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
        drop_pages(path)
    if (share := share_in_memory(paths)) is None or share > 0.01:
        pytest.skip("this file system keeps files in memory, so nobody can see what was read")
    adopt_shards(folder)
    assert (share_in_memory(paths) or 0) < 0.1


def decodable() -> tuple[Classes, Classes]:
    """The pictures of all layouts without those that no loader can decode; CMYK, PNG and turned ones are there."""
    train, validation = pictures()
    left_out = ("no end.JPEG", "empty.JPEG", "random.JPEG", "notes.txt", "half.JPEG", "nine bytes short.JPEG", "x.jpg")
    return {wnid: {n: d for n, d in files.items() if n not in left_out} for wnid, files in train.items()}, validation


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that tensorflow-datasets itself has written."""
    return writers.tfds_shards(tmp_path_factory.mktemp("tfds"), *decodable())


@pytest.mark.slow
def test_what_tensorflow_datasets_itself_writes_can_be_built(real: Path, tmp_path: Path) -> None:
    """The shards are byte for byte those of class folders."""
    folder = shutil.copytree(real, tmp_path / "theirs")
    adopt_shards(folder)
    class_folders(tmp_path / "folders", *decodable())
    found = []
    for source in (folder, tmp_path / "folders"):
        output = tmp_path / f"built from {source.name}"
        flags = ["--train-shards=2", "--validation-shards=1", "--workers=1"]
        assert build_shards.main(["--source", str(source), "--output", str(output), *flags]) == 0
        found.append({path.name: path.read_bytes() for path in output.glob("*-*")})
    assert found[0] == found[1]
    assert len(found[0]) == 8


@pytest.mark.slow
def test_what_tensorflow_datasets_itself_writes(real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, validation = pictures()
    folder = shutil.copytree(real, tmp_path / "shards")
    before = shard_files(folder)
    with caplog.at_level(logging.WARNING):
        info = adopt_shards(folder, only_plain=True)
    assert shard_files(folder) == before
    assert (info.features, info.label_base) == (TFDS, 0)
    assert [item.wnid for item in info.classes] == sorted(train)
    counts = "4-component JPEG (1), BMP (1), EXIF orientation 6 (1), GIF (1), PNG (1), WEBP (1)"
    assert f"6 records are no plain upright JPEG: {counts}" in caplog.text
    for split, classes in (("train", train), ("validation", validation)):
        shards = ShardSet.open(folder, split)
        stored = {(image.encoded, image.label) for image in map(shards.read, shards.usable.tolist())}
        files = {(data, label) for _, data, label in writers.rows(classes, sorted(train)) if data is not None}
        assert stored <= files
        assert len(shards.usable) == info.splits[split].num_records - len(info.splits[split].quarantine)
    assert len(info.splits["train"].quarantine) == 6


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation"])
def test_loaders_give_the_same_batches_as_from_own_shards(real: Path, tmp_path: Path, split: str) -> None:
    """Both loaders, value for value; and both agree with each other."""
    from pipelines import AugmentSpec, BatchSpec, open_loader
    from pipelines.loaders import dali

    folder = shutil.copytree(real, tmp_path / "shards")
    adopt_shards(folder, only_plain=True)
    theirs = ShardSet.open(folder, split)
    own = ShardSet.open(copied(theirs, DatasetInfo.load(folder), tmp_path / "own"), split)
    found = {}
    for name in ("dali", "tfdata"):
        if name == "dali" and dali.unavailable("cpu"):
            pytest.skip(f"no DALI: {dali.unavailable('cpu')}")
        for augment in (AugmentSpec.train(), AugmentSpec.evaluation()):
            batches = []
            for shards in (theirs, own):
                options = {"augment": augment, "workers": 1, "device": "cpu", "strict": True}
                loader = open_loader(name, shards, BatchSpec(8, 32), **options)
                batches.append(
                    [np.concatenate(p) for p in zip(*([t.numpy() for t in b] for b in loader.epoch(0)), strict=True)]
                )
            for one, other in zip(*batches, strict=True):
                np.testing.assert_array_equal(one, other)
            found[name, augment.is_evaluation] = batches[0]
    for is_evaluation in (False, True):
        dali_images, tfdata_images = (found[name, is_evaluation][0] for name in ("dali", "tfdata"))
        assert np.abs(dali_images - tfdata_images).mean() < 0.01
        np.testing.assert_array_equal(found["dali", is_evaluation][1], found["tfdata", is_evaluation][1])


def copied(shards: ShardSet, info: DatasetInfo, folder: Path) -> Path:
    """The same records in the same order with the features of this project, as one shard."""
    folder.mkdir()
    path = folder / f"{shards.split}-00000-of-00001"
    stored = [shards.read(record) for record in range(shards.num_records)]
    path.write_bytes(
        b"".join(
            records.frame(records.encode_example({records.ENCODED: image.encoded, records.LABEL: image.label + 1}))
            for image in stored
        )
    )
    write_index(path, scan(path))
    adopted = adopt_shards(folder, label_base=1)
    part = adopted.splits[shards.split].model_copy(update={"quarantine": info.splits[shards.split].quarantine})
    adopted.model_copy(update={"splits": {shards.split: part}}).save(folder)
    return folder
