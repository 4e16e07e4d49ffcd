"""Every layout of a data set gives the same shards; hostile, damaged and contradictory files are refused."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from kimagenet.commands import build_shards
from pipelines import UserError
from pipelines.building.build import build
from pipelines.building.options import BuildOptions
from pipelines.building.sources import Place, Scratch, Source, imagenet, open_source, recognize
from pipelines.building.sources.layouts import LAYOUTS as LOOKS
from pipelines.shards.dataset import DatasetInfo
from tests.helpers import layouts
from tests.helpers.builds import refuses_a_changed_source
from tests.helpers.sources import LABELS, REJECTED, WNIDS, write_sources

OPTIONS = BuildOptions(train_shards=2, validation_shards=2)
TFDS_LABELS = "2707a43f27dcd55fef87fbef0730966cb91c3aba99eb0c9e6f021217a553a3b1"
TEXTS = {
    "official_tars": "ImageNet's official tars, ILSVRC2012_img_train.tar, "
    "ILSVRC2012_img_val.tar (labels: built in, checked against the devkit)",
    "kaggle": "ImageNet in Kaggle's layout, ILSVRC/Data/CLS-LOC/train/<class>/, "
    "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_*.JPEG (labels: LOC_val_solution.csv)",
    "hugging_face": "ImageNet in Hugging Face's layout, 5 train tars in data/, 1 validation tar in data/",
    "hugging_face_plain": "ImageNet in Hugging Face's layout, 5 train tars in hugging_face_plain/, "
    "1 validation tar in hugging_face_plain/",
    "class_folders": "train/<class>/, validation/<class>/",
    "flat_validation": "train/<class>/, val/ILSVRC2012_val_*.JPEG (labels: built in)",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in each layout, in folders with the names of the layouts. For reading only."""
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def expected(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of the class folders."""
    output = tmp_path_factory.mktemp("expected") / "shards"
    build(open_source(sources / "class_folders"), output, OPTIONS)
    return output


def shards(folder: Path) -> dict[str, bytes]:
    """The files that must not depend on the layout: shards, indexes, sizes."""
    return {path.name: path.read_bytes() for path in folder.glob("*-*")}


def write_official(root: Path, train: bytes, validation: bytes | None = None) -> None:
    (root / "ILSVRC2012_img_train.tar").write_bytes(train)
    if validation is not None:
        (root / "ILSVRC2012_img_val.tar").write_bytes(validation)


def class_tar(*members: tarfile.TarInfo, data: bytes = b"1234") -> bytes:
    """A tar with a good image and the given members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for member in (tarfile.TarInfo("good.JPEG"), *members):
            member.size = len(data) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


# Layouts with separate tests: test_parquet.py and so on; test_other_sources.py compares them with folders.
OTHERS = {"parquet", "webdataset", "image_lists", "tf_records", "one_folder"}


def test_every_layout_is_tried() -> None:
    assert {look.__name__ for look in LOOKS} <= set(layouts.LAYOUTS) | OTHERS
    assert set(layouts.LAYOUTS) == set(TEXTS)


@pytest.mark.parametrize("layout", sorted(set(layouts.LAYOUTS) - {"class_folders"}))
def test_every_layout_gives_the_same_shards(sources: Path, expected: Path, tmp_path: Path, layout: str) -> None:
    command = ["--source", str(sources / layout), "--output", str(tmp_path / "shards"), "--workers=1"]
    flags = ["--train-shards=2", "--validation-shards=2", f"--max-rejected={REJECTED}"]
    assert build_shards.main([*command, *flags]) == 0
    assert shards(tmp_path / "shards") == shards(expected)
    assert len(shards(expected)) == 8  # 2 + 1 shards, their indexes, 2 files of sizes
    infos = [DatasetInfo.load(folder) for folder in (tmp_path / "shards", expected)]
    assert infos[0].classes == infos[1].classes
    assert [item.wnid for item in infos[0].classes] == sorted(WNIDS)
    assert not (tmp_path / "shards" / ".build").exists()
    rejected = [
        {Path(json.loads(line)["path"]).name: json.loads(line)["reason"] for line in file.read_text().splitlines()}
        for file in (tmp_path / "shards" / "rejected.jsonl", expected / "rejected.jsonl")
    ]
    if not layout.startswith("hugging_face"):  # a directory there is never renamed
        assert rejected[0] == rejected[1]
    assert sorted(rejected[0].values()) == sorted(rejected[1].values())
    assert len(rejected[0]) == REJECTED
    reencoded = {"4-component JPEG": 1, "BMP": 1, "EXIF orientation 6": 1, "GIF": 1, "PNG": 1, "WEBP": 1}
    reencoded["JPEG without end marker"] = 1
    assert infos[0].build["reencoded"] == infos[1].build["reencoded"] == reencoded


@pytest.mark.parametrize("layout", TEXTS)
def test_the_layout_is_named_in_one_line(sources: Path, layout: str) -> None:
    text = recognize(sources / layout).text
    assert TEXTS[layout] in text
    assert "\n" not in text


@pytest.mark.parametrize("inner", ["ILSVRC", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_tree_from_further_down(sources: Path, inner: str) -> None:
    whole, part = open_source(sources / "kaggle"), open_source(sources / "kaggle" / inner)
    for split in ("train", "validation"):
        assert [entry.read() for entry in part.splits[split]] == [entry.read() for entry in whole.splits[split]]
        assert [e.class_index for e in part.splits[split]] == [e.class_index for e in whole.splits[split]]


def test_validation_labels_are_the_known_ones() -> None:
    """Compared with values of the official devkit and of TensorFlow's list."""
    assert len(imagenet.wnids()) == len(imagenet.class_names()) == 1000
    assert list(imagenet.wnids()) == sorted(imagenet.wnids())
    assert (imagenet.wnids()[0], imagenet.class_names()["n01440764"]) == ("n01440764", "tench, Tinca tinca")
    assert LABELS["ILSVRC2012_val_00000001.JPEG"] == "n01751748" == imagenet.wnids()[65]
    assert len(LABELS) == 50_000
    # All of them as tensorflow-datasets 4.9.10 has them, in imagenet2012/validation_labels.txt.
    assert hashlib.sha256("\n".join(LABELS.values()).encode()).hexdigest() == TFDS_LABELS
    assert list(LABELS) == sorted(LABELS)
    assert set(np.unique(list(LABELS.values()), return_counts=True)[1]) == {50}


def test_a_devkit_that_agrees_and_one_that_does_not(tmp_path: Path) -> None:
    ids = layouts.true_ids()
    path = tmp_path / "devkit.tar.gz"
    path.write_bytes(layouts.devkit(ids))
    imagenet.check_devkit(path)
    for wrong in ([ids[1], ids[0], *ids[2:]], [1] * 50_000, list(range(1, 50_001))):
        path.write_bytes(layouts.devkit(wrong))
        with pytest.raises(UserError, match="contradicts the built-in"):
            imagenet.check_devkit(path)
    for data in (b"", b"junk", gzip.compress(layouts.tar([("a", b"")])), layouts.devkit(ids)[:5000]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"devkit\.tar\.gz: .* or remove it"):
            imagenet.check_devkit(path)


def test_hostile_members_are_rejected_and_nothing_is_unpacked(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    members = [
        tarfile.TarInfo(name)
        for name in (
            "/absolute.JPEG",
            "../up.JPEG",
            "a/../../up.JPEG",
            "link.JPEG",
            "hard.JPEG",
            "dev.JPEG",
            "x.jpg",
            "pipe",
        )
    ]
    kinds = {"link.JPEG": tarfile.SYMTYPE, "hard.JPEG": tarfile.LNKTYPE, "dev.JPEG": tarfile.CHRTYPE}
    for member in members:
        member.type = {**kinds, "x.jpg": tarfile.DIRTYPE, "pipe": tarfile.FIFOTYPE}.get(member.name, tarfile.REGTYPE)
        member.linkname = str(secret) if member.islnk() or member.issym() else ""
    root = tmp_path / "source"
    root.mkdir()
    write_official(root, layouts.tar([("n01440764.tar", class_tar(*members)), ("readme.txt", b"")]))
    source = open_source(root)
    assert [(entry.path, entry.read()) for entry in source.splits["train"]] == [
        ("ILSVRC2012_img_train.tar/n01440764.tar/good.JPEG", b"1234")
    ]
    prefix = "ILSVRC2012_img_train.tar/n01440764.tar/"
    assert {item.path.removeprefix(prefix): item.reason for item in source.rejected} == {
        "/absolute.JPEG": "an absolute name, or one with ..",
        "../up.JPEG": "an absolute name, or one with ..",
        "a/../../up.JPEG": "an absolute name, or one with ..",
        "link.JPEG": "a link in a tar",
        "hard.JPEG": "a link in a tar",
        "dev.JPEG": "not a regular file",
        "pipe": "not a regular file",
        "x.jpg": "a folder, not a file",
        "ILSVRC2012_img_train.tar/readme.txt": "its name is not that of a class tar",
    }
    assert {item.split for item in source.rejected} == {"train"}
    assert {path.name for path in tmp_path.rglob("*")} == {"secret", "source", "ILSVRC2012_img_train.tar"}


def test_files_without_a_class_are_listed(tmp_path: Path) -> None:
    """Names without a label, classes that training does not have, and second files of one name."""
    known = next(name for name, wnid in LABELS.items() if wnid == "n01440764")
    other = next(name for name, wnid in LABELS.items() if wnid != "n01440764")
    twice = layouts.tar([("a.JPEG", b"1"), ("./a.JPEG", b"2"), ("._a.JPEG", b"macOS")])
    write_official(
        tmp_path, layouts.tar([("n01440764.tar", twice)]), layouts.tar([(n, b"") for n in (known, other, "b.JPEG")])
    )
    source = open_source(tmp_path)
    assert [entry.read() for entry in source.splits["train"]] == [b"1"]
    assert [entry.name for entry in source.splits["validation"]] == [known]
    reasons = {(item.split, Path(item.path).name): item.reason for item in source.rejected}
    assert reasons == {
        ("train", "a.JPEG"): "a second file of this name in its class",
        ("validation", other): f"no training images of its class {LABELS[other]}",
        ("validation", "b.JPEG"): "the label of this file name is not known",
    }


def test_a_tar_that_is_cut_off_is_refused(sources: Path, tmp_path: Path) -> None:
    """At any byte: Python's tarfile accepts most of these as whole, shorter tars."""
    whole = (sources / "official_tars" / "ILSVRC2012_img_train.tar").read_bytes()
    ends = np.random.default_rng(1).integers(0, len(whole.rstrip(b"\0")), 40)
    for end in (0, 512, *ends, *(ends // 512 * 512)):
        write_official(tmp_path, whole[:end])
        with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar: .*cut off or damaged"):
            open_source(tmp_path)


@pytest.mark.parametrize("claim", ["size", "name"])
def test_tars_with_false_sizes_are_refused(tmp_path: Path, claim: str) -> None:
    """A header that leads backwards without end, and a long name of gigabytes."""
    member = tarfile.TarInfo("loop.JPEG")
    member.size = -1024 if claim == "size" else 1 << 40
    member.type = tarfile.REGTYPE if claim == "size" else tarfile.GNUTYPE_LONGNAME
    data = class_tar()[:1024] + member.tobuf(tarfile.GNU_FORMAT) + bytes(2048)
    write_official(tmp_path, layouts.tar([("n01440764.tar", data)]))
    with pytest.raises(UserError, match="cut off or damaged"):
        open_source(tmp_path)


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    write_official(tmp_path, layouts.tar([("n01440764.tar", layouts.tar([])), ("n01443537.tar", class_tar())]))
    with pytest.raises(UserError, match="the class n01440764 has no training images"):
        open_source(tmp_path)


def test_compressed_tars_are_unpacked_once(sources: Path, tmp_path: Path) -> None:
    """A repeated build keeps the tars that are unpacked, and unpacks an incomplete one again."""
    scratch = Scratch(tmp_path / "scratch", workers=3)
    first = open_source(sources / "hugging_face", scratch)
    times = {path: path.stat().st_ctime_ns for path in scratch.folder.iterdir()}
    assert len(times) == 6
    lost = min(times)
    lost.rename(scratch.folder / ".half.1234.tmp")
    again = open_source(sources / "hugging_face", scratch)
    assert again.splits == first.splits
    assert {path for path in scratch.folder.iterdir() if times[path] != path.stat().st_ctime_ns} == {lost}
    with pytest.raises(UserError, match="the file has to be unpacked"):
        open_source(sources / "hugging_face")


def test_a_compressed_tar_that_is_cut_off_or_has_no_room(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (sources / "hugging_face" / "data" / "train_images_0.tar.gz").read_bytes()
    for damaged in (data[:-9], data[: len(data) // 2], b"", data[:99] + b"junk" + data[103:]):
        (tmp_path / "train_images_0.tar.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"train_images_0\.tar\.gz.* cut off or damaged"):
            open_source(tmp_path, Scratch(tmp_path / "scratch"))
    (tmp_path / "train_images_0.tar.gz").write_bytes(data)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=r"No space left on device; .* repeat the same command; it keeps the files that are unpacked"
    ):
        open_source(tmp_path, Scratch(tmp_path / "full"))
    assert not list((tmp_path / "full").iterdir())


def test_a_tar_that_was_replaced_is_another_source(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offsets and lengths are the same."""
    data = (sources / "official_tars" / "ILSVRC2012_img_train.tar").read_bytes()
    (tmp_path / "source").mkdir()
    write_official(tmp_path / "source", data)

    def try_build() -> None:
        build(open_source(tmp_path / "source"), tmp_path / "shards", OPTIONS)

    def change() -> None:
        os.utime(tmp_path / "source" / "ILSVRC2012_img_train.tar", (1, 1))

    refuses_a_changed_source(try_build, change, monkeypatch)


def test_a_tar_that_shrinks_while_it_is_read_stops_the_build(sources: Path, tmp_path: Path) -> None:
    data = (sources / "official_tars" / "ILSVRC2012_img_train.tar").read_bytes()
    (tmp_path / "source").mkdir()
    write_official(tmp_path / "source", data)
    source = open_source(tmp_path / "source")
    write_official(tmp_path / "source", data[: len(data) // 2])
    with pytest.raises(UserError, match="shorter than it was; fix this and repeat"):
        build(source, tmp_path / "shards", OPTIONS)


@pytest.mark.parametrize(
    "table", ["", "a,b\n1,2\n", "ImageId,PredictionString\nILSVRC2012_val_00000001,\n", "ImageId,PredictionString\nx\n"]
)
def test_a_damaged_table_of_kaggle_is_refused(tmp_path: Path, table: str) -> None:
    path = tmp_path / "LOC_val_solution.csv"
    path.write_text(table)
    if not table:
        assert imagenet.kaggle_labels(path) == {}
        return
    with pytest.raises(UserError, match=r"LOC_val_solution\.csv: the columns ImageId and PredictionString are missing"):
        imagenet.kaggle_labels(path)


def test_an_image_with_two_classes_in_the_table_of_kaggle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "LOC_val_solution.csv"
    rows = ["ImageId,PredictionString", "a,n01440764 1 2 3 4", "b,n01443537 1 2 3 4", "a,n01440764 5 6 7 8"]
    path.write_text("\n".join(rows))
    assert imagenet.kaggle_labels(path) == {"a.JPEG": "n01440764", "b.JPEG": "n01443537"}
    path.write_text("\n".join([*rows, "b,n01440764 1 2 3 4"]))
    with pytest.raises(UserError, match=r"solution\.csv: b\.JPEG has two classes, n01443537 and n01440764; download"):
        imagenet.kaggle_labels(path)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("n01440764_10026_n01440764.JPEG", ("n01440764_10026.JPEG", "n01440764")),
        ("ILSVRC2012_val_00000001_n01751748.JPEG", ("ILSVRC2012_val_00000001.JPEG", "n01751748")),
        ("Bild ä 1_n01440764", ("Bild ä 1", "n01440764")),
        ("n01440764.JPEG", ("", "")),
        ("n01440764_10026.JPEG", ("", "")),
        ("a_n0144076.JPEG", ("", "")),
    ],
)
def test_hugging_faces_names(name: str, parts: tuple[str, str]) -> None:
    assert imagenet.split_name(name) == parts


def test_a_tar_that_is_replaced_while_it_is_read_stops_the_build(sources: Path, tmp_path: Path) -> None:
    """With the same size: only its time differs from the time of the listing."""
    data = (sources / "official_tars" / "ILSVRC2012_img_train.tar").read_bytes()
    (tmp_path / "source").mkdir()
    write_official(tmp_path / "source", data)
    source = open_source(tmp_path / "source")
    write_official(tmp_path / "source", data[:5000] + data[5000:][::-1])
    with pytest.raises(UserError, match="was changed after its images were listed; fix this and repeat"):
        build(source, tmp_path / "shards", OPTIONS)


def test_a_copy_that_is_unpacked_again_is_the_same_source(sources: Path, tmp_path: Path) -> None:
    first = open_source(sources / "hugging_face", Scratch(tmp_path / "first"))
    again = open_source(sources / "hugging_face", Scratch(tmp_path / "second"))
    assert [place.listed for place in places(first)] == [place.listed for place in places(again)]


def places(source: Source) -> list[Place]:
    return sorted({entry.place for entries in source.splits.values() for entry in entries})


@pytest.mark.parametrize("kind", ["FIFO", "folder"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    """A file that became something else after it was listed: opening a FIFO would block."""
    for folder in ("train/a", "train/b"):
        layouts.write_folder(tmp_path / "source" / folder, {"1.JPEG": b"1"})
    source = open_source(tmp_path / "source")
    path = tmp_path / "source" / "train" / "b" / "1.JPEG"
    path.unlink()
    os.mkfifo(path) if kind == "FIFO" else path.mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        source.splits["train"][1].read()
