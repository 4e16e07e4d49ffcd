"""Parquet as a source. `tests/test_other_sources.py` reads what Hugging Face's `datasets` writes."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines import UserError
from pipelines.building.sources import Scratch, Source, imagenet, open_source, recognize
from pipelines.building.sources import parquet as module

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: uv sync --extra parquet")
import pyarrow.parquet as pq  # noqa: E402

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, images: Any, labels: Any, names: Sequence[str] | None = None, **options: Any) -> Path:
    """A file with the columns image and label, and the names of labels as `datasets` keeps them."""
    table = pa.table({"image": images, "label": labels})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def structs(*pairs: tuple[bytes | None, str | None]) -> Any:
    return pa.array([{"bytes": data, "path": name} for data, name in pairs], PICTURE)


def opened(root: Path) -> Source:
    return open_source(root, Scratch(root / ".scratch", workers=2))


def listed(source: Source, split: str = "train") -> list[tuple[str, str, bytes]]:
    """Class, name and content of each image."""
    return [(source.classes[e.class_index].name, e.name, e.read()) for e in source.splits[split]]


def test_names_of_labels_and_their_order_are_kept(tmp_path: Path) -> None:
    images = structs((b"one", "a/1.jpg"), (b"two", "2.jpg"), (b"", "3.jpg"))
    write(tmp_path / "data" / "train-00000-of-00001.parquet", images, [1, 0, 1], ("zebra", "ant"))
    source = opened(tmp_path)
    assert [item.name for item in source.classes] == ["zebra", "ant"]
    assert listed(source) == [("zebra", "2.jpg", b"two"), ("ant", "1.jpg", b"one"), ("ant", "3.jpg", b"")]
    assert source.splits["train"][0].path == "data/train-00000-of-00001.parquet/2.jpg"


@pytest.mark.parametrize("kind", ["string", "dictionary", "large_binary", "numbers"])
def test_other_columns(tmp_path: Path, kind: str) -> None:
    """Plain bytes as images; names, or numbers without names, as labels."""
    labels: Any = pa.array(["dog", "cat"])
    images = pa.array([b"one", b"two"], pa.large_binary() if kind == "large_binary" else pa.binary())
    if kind == "dictionary":
        labels = labels.dictionary_encode()
    if kind == "numbers":
        labels = [10, 9]
    write(tmp_path / "train.parquet", images, labels)
    found = [(name, data) for name, _, data in listed(opened(tmp_path))]
    wanted = [("9", b"two"), ("10", b"one")] if kind == "numbers" else [("cat", b"two"), ("dog", b"one")]
    assert found == wanted


def test_rows_without_name_get_one(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", structs((b"1", None), (b"2", None)), [0, 0], ("a",))
    assert [name for _, name, _ in listed(opened(tmp_path))] == ["train-000000", "train-000001"]


def test_equal_names_are_different_images(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", structs((b"1", "image.jpg"), (b"2", "image.jpg")), [0, 0], ("a",))
    assert [data for *_, data in listed(opened(tmp_path))] == [b"1", b"2"]


def test_rows_without_image_or_label_are_listed(tmp_path: Path) -> None:
    images = structs((b"1", "good.jpg"), (None, "empty.jpg"), (b"1", "secret.jpg"), (b"1", "null.jpg"), (b"1", "7.jpg"))
    write(tmp_path / "train.parquet", images, [0, 0, -1, None, 7], ("a",))
    source = opened(tmp_path)
    assert len(listed(source)) == 1
    assert {Path(item.path).name: item.reason for item in source.rejected} == {
        "empty.jpg": "the row has no bytes of an image",
        "secret.jpg": "it has no label",
        "null.jpg": "it has no label",
        "7.jpg": "its label 7 belongs to no class",
    }


def test_imagenet_gives_wordnet_ids_and_its_usual_names(tmp_path: Path) -> None:
    """ILSVRC/imagenet-1k: names of two classes are "crane"; file names end in a wnid."""
    wnids = imagenet.wnids()
    names = [f"class {number}" for number in range(1000)]
    for split, file in (
        ("train", f"{wnids[134]}_5_{wnids[134]}.JPEG"),
        ("validation", f"ILSVRC2012_val_00000001_{wnids[134]}.JPEG"),
    ):
        write(tmp_path / "data" / f"{split}-00000-of-00001.parquet", structs((b"x", file)), [134], names)
    write(tmp_path / "data" / "test-00000-of-00001.parquet", structs((b"x", "ILSVRC2012_test_1.JPEG")), [-1], names)
    source = opened(tmp_path)
    assert source.classes[134].wnid == wnids[134]
    assert [entry.name for entry in source.splits["train"]] == [f"{wnids[134]}_5.JPEG"]
    assert [entry.name for entry in source.splits["validation"]] == ["ILSVRC2012_val_00000001.JPEG"]
    assert recognize(tmp_path).unused == ("data/test-00000-of-00001.parquet",)


def test_names_decide_about_a_validation_split_that_is_numbered_differently(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", structs((b"1", "1"), (b"2", "2")), [0, 1], ("a", "b"))
    write(tmp_path / "validation.parquet", structs((b"3", "3"), (b"4", "4")), [0, 1], ("b", "a"))
    assert listed(opened(tmp_path), "validation") == [("a", "4", b"4"), ("b", "3", b"3")]


def test_files_that_are_numbered_differently_are_refused(tmp_path: Path) -> None:
    for number, names in enumerate((("a", "b"), ("b", "a"))):
        write(tmp_path / f"train-{number:05d}-of-00002.parquet", structs((b"1", "1")), [0], names)
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet: its classes are numbered differently"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": ["a"], "label": [0]},
            "no column of images; it has the columns text, label; name the column of images image",
        ),
        ({"image": [b"a"], "kind": [0]}, "no column of labels; it has the columns image, kind"),
        ({"image": [b"a"], "label": [[0]]}, "its labels are list, not one number"),
        ({"image": [[1, 2]], "label": [0]}, "its images are list, not encoded files"),
        ({"image": [b"a"], "label": [0.5]}, "its labels are float"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path: Path, columns: dict, message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_of_several_label_columns_one_is_used_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in CIFAR-100."""
    labels = {
        "fine_label": {"names": ["a"], "_type": "ClassLabel"},
        "coarse_label": {"names": ["x"], "_type": "ClassLabel"},
    }
    table = pa.table({"img": structs((b"1", "1")), "fine_label": [0], "coarse_label": [0]})
    features = {"img": {"_type": "Image"}, **labels}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "train.parquet")
    assert [item.name for item in opened(tmp_path).classes] == ["a"]
    assert "of its columns of labels (fine_label, coarse_label) fine_label is used" in caplog.text


@pytest.mark.parametrize("where", [0, 0.3, 0.7, 0.99])
def test_files_that_are_cut_off_are_refused(tmp_path: Path, where: float) -> None:
    rows = structs(*[(os.urandom(2000), f"{number}.jpg") for number in range(50)])
    path = write(tmp_path / "train.parquet", rows, [0] * 50, ("a",))
    data = path.read_bytes()
    path.write_bytes(data[: int(where * len(data))])
    with pytest.raises(UserError, match=r"train\.parquet: cut off or damaged"):
        opened(tmp_path)


def test_damaged_pages_are_refused(tmp_path: Path) -> None:
    rows = structs(*[(bytes(9000), f"{number}.jpg") for number in range(50)])
    path = write(tmp_path / "train.parquet", rows, [0] * 50, ("a",), compression="zstd")
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(200) + data[204:])
    with pytest.raises(UserError, match=r"train\.parquet: cut off or damaged"):
        opened(tmp_path)
    assert not list((tmp_path / ".scratch").iterdir())


@pytest.mark.parametrize("group", [7, 1000])
def test_row_groups_of_any_size(tmp_path: Path, group: int) -> None:
    pairs = [(os.urandom(number), f"{number:03d}.jpg") for number in range(100)]
    write(tmp_path / "train.parquet", structs(*pairs), [0] * 100, ("a",), row_group_size=group)
    assert [(data, name) for _, name, data in listed(opened(tmp_path))] == pairs


def test_files_are_unpacked_once(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", structs((b"1", "1.jpg")), [0], ("a",))
    first = opened(tmp_path)
    (copy,) = (tmp_path / ".scratch").iterdir()
    before = copy.stat().st_ctime_ns
    assert opened(tmp_path).splits == first.splits
    assert copy.stat().st_ctime_ns == before
    copy.unlink()
    assert opened(tmp_path).splits == first.splits  # a copy that is made again is the same source


def test_few_threads_unpack_large_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread has a row group in memory, up to three times."""
    write(tmp_path / "train.parquet", structs((bytes(100_000), "1.jpg")), [0], ("a",), compression="none")
    threads = []

    def unpacked(paths: Sequence[Path], scratch: Scratch, *_: object) -> list[Path]:
        threads.append(scratch.workers)
        return []

    monkeypatch.setattr(module, "unpacked", unpacked)
    for memory in (1 << 30, 4 * 3 * 2 * 101_000, 1):
        monkeypatch.setattr(module, "memory_bytes", lambda memory=memory: memory)
        module._unpack([tmp_path / "train.parquet"], Scratch(tmp_path, workers=8))
    assert threads == [8, 2, 1]


def test_without_pyarrow_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.parquet", structs((b"1", "1.jpg")), [0], ("a",))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"reading Parquet needs pyarrow, .*; `pip install 'pyarrow>=18'`"):
        opened(tmp_path)


def test_one_row_group_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """Of a file of 20 MB in row groups of 2 MB."""
    rows = [(os.urandom(200_000), f"{number}.jpg") for number in range(100)]
    path = write(tmp_path / "train.parquet", structs(*rows), [0] * 100, ("a",), row_group_size=10, compression="none")
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for _ in module._rows(path, module.find_columns(path), lambda _: None):
        most = max(most, pool.bytes_allocated() - before)
    assert 0 < most < 8_000_000
