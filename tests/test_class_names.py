"""One label is one class: names in records are compared within shards, between shards, splits and dataset.json."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kimagenet.commands import build_index
from pipelines import UserError
from pipelines.building.adopt import adopt_shards
from pipelines.building.check import check_shards
from pipelines.building.class_names import ClassNames, contradiction_with_classes, find_contradiction
from pipelines.shards import records
from pipelines.shards.dataset import DATASET_FILE, ClassInfo, DatasetInfo
from tests.helpers.data import jpeg, photo

IMAGE = jpeg(photo(np.random.default_rng(0), 0, 20, 30))
Row = tuple[int, str, str]  # label, synset, text; "" is a feature that is missing


def write_shard(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    """A shard with one record for each row."""
    framed = []
    for label, synset, text in rows:
        names = {records.SYNSET: synset.encode(), records.TEXT: text.encode()}
        features: dict[str, records.FeatureValue] = {records.ENCODED: IMAGE, records.LABEL: label}
        framed.append(records.frame(records.encode_example(features | {k: v for k, v in names.items() if v})))
    (folder / name).write_bytes(b"".join(framed))
    return folder / name


def texts(*names: str) -> list[Row]:
    """Rows that number these names from 1."""
    return [(label, "", name) for label, name in enumerate(names, 1)]


def write_splits(folder: Path, splits: dict[str, list[list[Row]]]) -> Path:
    for split, shards in splits.items():
        for number, rows in enumerate(shards):
            write_shard(folder, f"{split}-{number:05d}-of-{len(shards):05d}", rows)
    return folder


CONTRADICTIONS: dict[str, tuple[dict[str, list[list[Row]]], str]] = {
    "splits": (
        {"train": [texts("cat", "dog", "fox")], "validation": [texts("dog", "fox", "cat")]},
        "validation-00000-of-00001: classes are numbered differently: train has 1 'cat', 2 'dog', 3 'fox', "
        "but validation has 1 'dog', 2 'fox', 3 'cat'; write the shards again with the same labels",
    ),
    "a label that only validation has": (
        {"train": [texts("cat", "dog")], "validation": [[(1, "", "cat"), (3, "", "dog")]]},
        "validation-00000-of-00001: classes are numbered differently: train has 2 'dog', but validation has 3 'dog'",
    ),
    "shards": (
        {"train": [texts("cat", "dog"), texts("cat", "fox")]},
        "train-00001-of-00002: classes are numbered differently: train-00000-of-00002 has 2 'dog', "
        "but train-00001-of-00002 has 2 'fox'",
    ),
    "records of one shard": (
        {"train": [[*texts("cat", "dog"), (1, "", "dog")]]},
        "train-00000-of-00001: label 1 is 'cat' in record 0 and 'dog' in record 2",
    ),
    "wnids with one text": (
        {"train": [[(1, "n02012849", "crane")]], "validation": [[(1, "n03126707", "crane")]]},
        "classes are numbered differently: train has 1 'crane', but validation has 1 'crane'",
    ),
    "a wnid with two labels": (
        {"train": [[(1, "n02012849", "crane")], [(2, "n02012849", "crane")]]},
        "train-00001-of-00002: classes are numbered differently: train-00000-of-00002 has 1 'crane', "
        "but train-00001-of-00002 has 2 'crane'",
    ),
    "wnids in one split, names of ImageNet in the other": (
        {
            "train": [[(1, "n01440764", ""), (2, "n01443537", "")]],
            "validation": [[(1, "", "goldfish, Carassius auratus"), (2, "", "tench, Tinca tinca")]],
        },
        "train has 1 'n01440764', 2 'n01443537', but validation has 1 'goldfish, Carassius auratus', 2 'tench, Tinca",
    ),
    "names in synset alone": (
        {"train": [[(0, "cat", ""), (1, "dog", "")]], "validation": [[(0, "dog", ""), (1, "cat", "")]]},
        "train has 0 'cat', 1 'dog', but validation has 0 'dog', 1 'cat'",
    ),
    "many classes": (
        {"train": [texts(*"abcdef")], "validation": [texts(*"fedcba")]},
        "train has 1 'a', 2 'b', 3 'c', …, but validation has 1 'f', 2 'e', 3 'd', …",
    ),
}

AGREEMENTS: dict[str, dict[str, list[list[Row]]]] = {
    "no names in validation": {"train": [texts("cat", "dog")], "validation": [[(2, "", "")]]},
    "two classes with one text": {"train": [texts("crane", "crane")], "validation": [texts("crane", "crane")]},
    "two wnids with one text": {
        "train": [[(1, "n02012849", "crane"), (2, "n03126707", "crane")]],
        "validation": [[(2, "n03126707", "crane")]],
    },
    "one wnid with two texts": {"train": [[(1, "n02012849", "crane")]], "validation": [[(1, "n02012849", "a bird")]]},
    "text in some records": {"train": [[(1, "cat", ""), (1, "cat", "cat"), (1, "", "cat")]]},
    "Unicode forms": {"train": [texts("\u00e9")], "validation": [texts("e\u0301")]},
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_contradictions_are_refused_and_found(tmp_path: Path, kind: str) -> None:
    splits, expected = CONTRADICTIONS[kind]
    write_splits(tmp_path, splits)
    with pytest.raises(UserError) as caught:
        adopt_shards(tmp_path)
    assert expected in str(caught.value)
    assert not (tmp_path / DATASET_FILE).exists()
    lines = [fault.line(tmp_path) for fault in check_shards(tmp_path).faults]
    assert sum(expected in line for line in lines) == 1


@pytest.mark.parametrize("kind", AGREEMENTS)
def test_names_that_agree_are_accepted(tmp_path: Path, kind: str) -> None:
    write_splits(tmp_path, AGREEMENTS[kind])
    adopt_shards(tmp_path)
    assert check_shards(tmp_path).faults == ()


def test_names_of_all_splits_are_taken(tmp_path: Path) -> None:
    rows = [(1, "n01440764", ""), (3, "", "c")]
    write_splits(tmp_path, {"train": [rows], "validation": [[(1, "", "tench"), (2, "", "b")]]})
    found = [(item.name, item.wnid) for item in adopt_shards(tmp_path).classes]
    assert found == [("tench", "n01440764"), ("b", None), ("c", None)]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["cat", "dog"], ""),
        (["a cat", "a dog"], ""),  # names that a user chose
        (["dog", "cat"], "dataset.json has 1 'dog', 2 'cat', but a shard has 1 'cat', 2 'dog'"),
        (["x", "cat"], "dataset.json has 1 'x', 2 'cat', but a shard has 1 'cat', 2 'dog'"),
    ],
)
def test_dataset_json_and_records(classes: list[str], expected: str) -> None:
    infos = [ClassInfo(name=name) for name in classes]
    found = contradiction_with_classes(infos, 1, {1: ClassNames("", "cat"), 2: ClassNames("", "dog")})
    assert expected in found
    assert bool(found) == bool(expected)


def test_a_dataset_json_of_another_numbering(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As build_index wrote it before it compared names: those of the split that was read last."""
    write_splits(tmp_path, {"train": [texts("cat", "dog")]})
    info = adopt_shards(tmp_path)
    other = info.model_copy(update={"classes": info.classes[::-1]})
    other.save(tmp_path)
    (fault,) = check_shards(tmp_path).faults
    assert (fault.file, fault.record) == (DATASET_FILE, None)
    assert "dataset.json has 1 'dog', 2 'cat', but a shard has 1 'cat', 2 'dog'" in fault.reason
    assert build_index.main([str(tmp_path), "--workers=1"]) == 2
    assert "; remove dataset.json if it belongs to other shards" in capsys.readouterr().err
    (tmp_path / DATASET_FILE).unlink()
    assert build_index.main([str(tmp_path), "--workers=1"]) == 0
    assert DatasetInfo.load(tmp_path) == info


def test_names_of_quarantined_records_are_not_compared(tmp_path: Path) -> None:
    path = write_splits(tmp_path, {"train": [texts("cat", "dog")]}) / "train-00000-of-00001"
    adopt_shards(tmp_path)
    report = check_shards(tmp_path)
    assert report.info is not None
    part = report.info.splits["train"]
    info = report.info.model_copy(update={"splits": {"train": part.model_copy(update={"quarantine": [1]})}})
    info.save(tmp_path)
    write_shard(tmp_path, path.name, texts("cat", "cat"))
    assert [fault.file for fault in check_shards(tmp_path).faults if "label" in fault.reason] == []


def test_a_name_with_control_characters_stays_one_line() -> None:
    splits = {"train": {"a": {1: ClassNames("", "c\nat")}, "b": {1: ClassNames("", "d\x1b[31mog" * 9)}}}
    found = find_contradiction(splits)
    assert found is not None
    assert found.what.isprintable()
    assert len(found.what) < 200


def test_names_in_dataset_json_are_one_line_and_still_agree(tmp_path: Path) -> None:
    write_splits(tmp_path, {"train": [texts("c\nat", "d\x1b[31mog")]})
    for _ in range(2):
        assert [item.name for item in adopt_shards(tmp_path).classes] == ["c at", "d [31mog"]
    assert check_shards(tmp_path).faults == ()
