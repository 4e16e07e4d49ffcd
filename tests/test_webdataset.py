"""WebDataset tars as a source. `tests/test_other_sources.py` reads what the package itself writes."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines import UserError
from pipelines.building.sources import Scratch, Source, imagenet, open_source, recognize
from tests.helpers.layouts import tar


def write(root: Path, *samples: tuple[str, dict[str, bytes]], name: str = "a-train-0000.tar") -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(tar([(f"{key}.{kind}", data) for key, parts in samples for kind, data in parts.items()]))


def listed(source: Source, split: str = "train") -> list[tuple[str, str, bytes]]:
    """Class, name and content of each image."""
    return [(source.classes[e.class_index].name, e.name, e.read()) for e in source.splits[split]]


def test_labels_of_cls_and_json(tmp_path: Path) -> None:
    write(
        tmp_path,
        ("1", {"jpg": b"one", "cls": b"1\n"}),
        ("2", {"cls": b"0", "PNG": b"two", "txt": b"a caption"}),
        ("3", {"json": b'{"label": 1, "filename": "x/three.JPEG"}', "jpeg": b"three"}),
    )
    source = open_source(tmp_path)
    assert listed(source) == [("0", "2.PNG", b"two"), ("1", "1.jpg", b"one"), ("1", "three.JPEG", b"three")]
    assert source.rejected == []


@pytest.mark.parametrize("name", ["classnames.txt", "classes.txt"])
def test_names_of_numbers_stand_beside_the_tars(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Their order is that of the labels, also if a class has no images."""
    (tmp_path / name).write_text("zebra\nmissing\nant\n")
    write(tmp_path, ("1", {"jpg": b"one", "cls": b"2"}), ("2", {"jpg": b"two", "cls": b"0"}))
    source = open_source(tmp_path)
    assert [item.name for item in source.classes] == ["zebra", "missing", "ant"]
    assert listed(source) == [("zebra", "2.jpg", b"two"), ("ant", "1.jpg", b"one")]
    assert "the class missing has no training images; the data set's own numbers of classes are kept" in caplog.text
    assert recognize(tmp_path).unused == ()


def test_texts_are_names_of_classes(tmp_path: Path) -> None:
    write(tmp_path, ("1", {"jpg": b"one", "cls": b"dog"}), ("2", {"jpg": b"two", "json": b'{"label": "cat"}'}))
    assert listed(open_source(tmp_path)) == [("cat", "2.jpg", b"two"), ("dog", "1.jpg", b"one")]


def test_numbers_of_imagenet_are_recognized_by_file_names(tmp_path: Path) -> None:
    """As in timm/imagenet-1k-wds, where validation images have names without a wnid."""
    wnids = imagenet.wnids()
    for split, names in (("train", [f"{wnids[7]}_12.JPEG", f"{wnids[999]}_3.JPEG"]), ("validation", [])):
        labels = [7, 999]
        if split == "validation":
            names = [next(n for n, w in imagenet.validation_labels().items() if w == wnids[label]) for label in labels]
        samples = [
            (f"{number}", {"jpg": b"x", "cls": str(label).encode(), "json": json.dumps({"filename": name}).encode()})
            for number, (label, name) in enumerate(zip(labels, names, strict=True))
        ]
        write(tmp_path, *samples, name=f"imagenet1k-{split}-0000.tar")
    source = open_source(tmp_path)
    assert len(source.classes) == 1000
    for split in ("train", "validation"):
        assert [source.classes[entry.class_index].wnid for entry in source.splits[split]] == [wnids[7], wnids[999]]


def test_numbers_of_a_part_of_imagenet_are_its_own(tmp_path: Path) -> None:
    wnids = imagenet.wnids()
    samples = [(f"{wnids[7]}_1", {"jpg": b"x", "cls": b"0"}), (f"{wnids[9]}_1", {"jpg": b"y", "cls": b"1"})]
    write(tmp_path, *samples)
    assert [item.name for item in open_source(tmp_path).classes] == ["0", "1"]


def test_keys_may_repeat_in_other_tars(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path, ("0", {"jpg": b"%d" % number, "cls": b"cat"}), name=f"a-{number:04d}.tar")
    source = open_source(tmp_path)
    assert [data for *_, data in listed(source)] == [b"0", b"1"]
    assert [entry.path for entry in source.splits["train"]] == ["a-0000.tar/0.jpg", "a-0001.tar/0.jpg"]


def test_keys_may_have_folders(tmp_path: Path) -> None:
    write(tmp_path, ("x/0", {"jpg": b"1", "cls": b"a"}), ("y/0", {"jpg": b"2", "cls": b"b"}))
    assert listed(open_source(tmp_path)) == [("a", "0.jpg", b"1"), ("b", "0.jpg", b"2")]


def test_samples_that_are_incomplete_are_listed(tmp_path: Path) -> None:
    samples: Sequence[tuple[str, dict[str, bytes]]] = (
        ("good", {"jpg": b"1", "cls": b"0"}),
        ("unlabelled", {"jpg": b"1"}),
        ("blank", {"jpg": b"1", "cls": b" "}),
        ("broken", {"jpg": b"1", "json": b"{"}),
        ("negative", {"jpg": b"1", "cls": b"-1"}),
        ("alone", {"cls": b"0"}),
        ("two", {"jpg": b"1", "png": b"2", "cls": b"0"}),
        ("seg", {"seg.png": b"1", "cls": b"0"}),
    )
    write(tmp_path, *samples)
    source = open_source(tmp_path)
    assert len(listed(source)) == 1
    no_label = "it has no .cls file, and no .json file with a label"
    assert {Path(item.path).stem: item.reason for item in source.rejected} == {
        "unlabelled": no_label,
        "blank": no_label,
        "broken": no_label,
        "negative": "it has no label",
        "alone": "the sample has no image",
        "two": "the sample has 2 images (jpg, png)",
        "seg": "the sample has no image",
    }


def test_hostile_members_are_rejected(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, kind in (("../1.jpg", tarfile.REGTYPE), ("2.jpg", tarfile.SYMTYPE), ("3.jpg", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, "/etc/passwd", 0
            archive.addfile(member)
        label = tarfile.TarInfo("3.cls")
        label.size = 1
        archive.addfile(label, io.BytesIO(b"0"))
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    source = open_source(tmp_path)
    assert [entry.name for entry in source.splits["train"]] == ["3.jpg"]
    assert sorted(item.reason for item in source.rejected) == ["a link in a tar", "an absolute name, or one with .."]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("x-train-0000.tar", "x-train-0001.tar", "x-val-0000.tar"), {"train": 2, "validation": 1}),
        (("train/0.tar", "train/1.tar", "test/0.tar"), {"train": 2, "validation": 1}),
        (("0000.tar", "0001.tar"), {"train": 2}),
        (("x-train-0.tar", "x-validation-0.tar", "x-test-0.tar"), {"train": 1, "validation": 1}),
    ],
)
def test_the_split_is_a_word_in_the_name(tmp_path: Path, names: Sequence[str], splits: dict[str, int]) -> None:
    for number, name in enumerate(names):
        write((tmp_path / name).parent, (f"{number}", {"jpg": b"1", "cls": b"0"}), name=Path(name).name)
    source = open_source(tmp_path)
    assert {split: len(entries) for split, entries in source.splits.items()} == splits
    unused = [name for name in names if "test" in name and "validation" in str(names)]
    assert list(recognize(tmp_path).unused) == unused


def test_a_tar_that_is_missing_or_cut_off_is_named(tmp_path: Path) -> None:
    sample = ("1", {"jpg": bytes(999), "cls": b"0"})
    for number in (0, 2):
        write(tmp_path, sample, name=f"a-{number:04d}.tar")
    with pytest.raises(UserError, match=r"a-0001\.tar: the file is missing"):
        open_source(tmp_path)
    write(tmp_path, sample, name="a-0001.tar")
    path = tmp_path / "a-0002.tar"
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(UserError, match=r"a-0002\.tar is cut off or damaged"):
        open_source(tmp_path)


def test_compressed_tars_are_unpacked(tmp_path: Path) -> None:
    import gzip

    write(tmp_path, ("1", {"jpg": b"one", "cls": b"0"}))
    path = tmp_path / "a-train-0000.tar"
    (tmp_path / "a-train-0000.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert listed(open_source(tmp_path, Scratch(tmp_path / "scratch"))) == [("0", "1.jpg", b"one")]


def test_splits_in_several_folders_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, ("1", {"jpg": b"1", "cls": b"0"}), name="train-0000.tar")
    with pytest.raises(UserError, match="the train files are in several folders, a/ and b/; choose one of these"):
        open_source(tmp_path)
