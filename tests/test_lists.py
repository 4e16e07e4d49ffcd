"""A list of images as a source: CSV and JSON lines, with whatever people write into them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from kimagenet.commands import build_shards
from pipelines import UserError
from pipelines.building.sources import Source, open_source, recognize
from pipelines.shards.contents import look
from pipelines.shards.dataset import DatasetInfo
from tests.helpers.data import jpeg, photo


def files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def listed(source: Source, split: str = "train") -> list[tuple[str, str]]:
    """Class and content of each image."""
    return [(source.classes[entry.class_index].name, entry.read().decode()) for entry in source.splits[split]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "path,label\na/1.jpg,cat\nb/1.jpg,dog\n"),
        ("x.csv", "\ufefflabel;file_name;size\r\ncat;a/1.jpg;7\r\ndog;b/1.jpg;9\r\n"),
        ("x.csv", 'Filename,Class\n"a/1.jpg",cat\n"b/1.jpg","dog"'),
        ("x.csv", "a/1.jpg,cat\nb/1.jpg,dog\n"),
        ("x.csv", "size,size,path,label\n1,2,a/1.jpg,cat\n1,2,b/1.jpg,dog\n"),
        ("x.csv", "path,label,split\na/1.jpg,cat,/train\nb/1.jpg,dog,data/train\n"),
        ("x.tsv", "path\tlabel\na/1.jpg\tcat\n\nb/1.jpg\tdog\n"),
        ("x.jsonl", '{"path": "a/1.jpg", "label": "cat"}\n\n{"label": "dog", "path": "b/1.jpg", "more": [1]}\n'),
        ("metadata.jsonl", '{"file_name": "a/1.jpg", "label": "cat"}\n{"file_name": "b/1.jpg", "label": "dog"}\n'),
    ],
)
def test_lists_as_people_write_them(tmp_path: Path, name: str, text: str) -> None:
    files(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    source = open_source(tmp_path if name.startswith("metadata") else tmp_path / name)
    assert listed(source) == [("cat", "a/1.jpg"), ("dog", "b/1.jpg")]
    assert source.rejected == []
    assert [entry.path for entry in source.splits["train"]] == ["a/1.jpg", "b/1.jpg"]


def test_a_row_that_is_short_is_listed(tmp_path: Path) -> None:
    """Also where a name of a column is there twice."""
    files(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "x.csv").write_text("path,path,label\n1.jpg\nb,2.jpg,cat\n")
    source = open_source(tmp_path / "x.csv")
    assert listed(source) == [("cat", "2.jpg")]
    assert [item.path for item in source.rejected] == ["x.csv, line 2"]


@pytest.mark.parametrize("name", ["list.csv", "training.csv", "Train.csv"])
def test_lists_that_are_built_are_named_by_the_other_commands(tmp_path: Path, name: str) -> None:
    files(tmp_path, "1.jpg")
    (tmp_path / name).write_text("path,label\n1.jpg,cat\n")
    assert listed(open_source(tmp_path)) == [("cat", "1.jpg")]
    assert look(tmp_path).what == f"lists of images ({name})"


def test_equal_names_in_several_folders_are_different_images(tmp_path: Path) -> None:
    files(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "x.csv").write_text("path,label\na/1.jpg,cat\nb/1.jpg,cat\n")
    assert listed(open_source(tmp_path / "x.csv")) == [("cat", "a/1.jpg"), ("cat", "b/1.jpg")]


def test_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(12)]
    files(tmp_path, *names)
    (tmp_path / "x.csv").write_text("path,label\n" + "".join(f"{n}.jpg,{n}\n" for n in reversed(range(12))))
    assert [item.name for item in open_source(tmp_path / "x.csv").classes] == [str(number) for number in range(12)]


def test_wordnet_ids_become_names(tmp_path: Path) -> None:
    files(tmp_path, "1.jpg")
    (tmp_path / "x.csv").write_text("path,label\n1.jpg,n01440764\n")
    assert open_source(tmp_path / "x.csv").classes[0].name == "tench, Tinca tinca"


@pytest.mark.parametrize(
    ("names", "validation"),
    [(("train", "val"), "val"), (("train", "test"), "test"), (("TRAIN", "Validation"), "Validation")],
)
def test_a_column_says_the_split(tmp_path: Path, names: Sequence[str], validation: str) -> None:
    files(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "x.csv").write_text(f"path,label,split\n1.jpg,cat,{names[0]}\n2.jpg,cat,{names[1]}\n")
    source = open_source(tmp_path / "x.csv")
    assert listed(source) == [("cat", "1.jpg")]
    assert listed(source, "validation") == [("cat", "2.jpg")]


def test_test_images_are_left_out_if_there_are_validation_images(tmp_path: Path) -> None:
    files(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "x.csv").write_text("path,label,split\n1.jpg,cat,train\n2.jpg,cat,val\n3.jpg,cat,test\n")
    layout = recognize(tmp_path / "x.csv")
    assert layout.text == "the list x.csv, train, the list x.csv, validation (not used: 1 of test)"
    assert [len(entries) for entries in layout.read(None).splits.values()] == [1, 1]


def test_a_list_for_each_split(tmp_path: Path) -> None:
    files(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "train.csv").write_text("path,label\n1.jpg,cat\n")
    (tmp_path / "valid.csv").write_text("path,label\n2.jpg,cat\n")
    source = open_source(tmp_path)
    assert (listed(source), listed(source, "validation")) == ([("cat", "1.jpg")], [("cat", "2.jpg")])


def test_rows_that_are_no_image_are_listed(tmp_path: Path) -> None:
    files(tmp_path, "1.jpg")
    (tmp_path / "folder").mkdir()
    rows = ["1.jpg,cat", "gone.jpg,cat", "folder,cat", "1.jpg,cat", "1.jpg,dog", ",cat", "2.jpg,", "short"]
    (tmp_path / "x.csv").write_text("path,label\n" + "".join(f"{row}\n" for row in rows))
    source = open_source(tmp_path / "x.csv")
    assert listed(source) == [("cat", "1.jpg")]
    assert [(item.path, item.reason) for item in source.rejected] == [
        ("1.jpg", "listed before (line 5)"),
        ("1.jpg", "listed before, with the class cat (line 6)"),
        ("folder", "a folder, not a file"),
        ("gone.jpg", "no such file"),
        ("x.csv, line 7", "the path is missing"),
        ("x.csv, line 8", "the label is missing"),
        ("x.csv, line 9", "the label is missing"),
    ]
    assert {item.split for item in source.rejected} == {"train"}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.csv", b"id,url\n1,2\n", "no column of paths; it has the columns id, url; name the column of paths `path`"),
        ("x.csv", b"path,size\n1.jpg,2\n", "no column of labels; it has the columns path, size; name"),
        ("x.csv", b"", "no column of paths"),
        ("x.csv", b"path,label\n\xff\xfe,cat\n", "not a list that can be read"),
        ("x.jsonl", b'{"path": "a"}\n', "no column of labels; it has the columns path"),
        ("x.jsonl", b'{"path": "a", "label": "b"}\n{"path"\n', "line 2 is no JSON object"),
        ("x.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("x.csv", b"path,label,split\n1.jpg,cat,test\n", "no training images in the list"),
        ("x.zip", b"PK", "a file, not a folder of a data set"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / name)


@pytest.mark.parametrize("folder", ["train/", ""])
def test_lists_of_something_else_are_no_source(tmp_path: Path, folder: str) -> None:
    files(tmp_path, f"{folder}a/1.jpg", f"{folder}b/1.jpg")
    for name in ("labels.csv", "LOC_val_solution.csv"):
        (tmp_path / name).write_text("number,name\n0,a\n")
    assert [name for name, _ in listed(open_source(tmp_path))] == ["a", "b"]
    assert recognize(tmp_path).unused == ("LOC_val_solution.csv", "labels.csv")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    with open(tmp_path / "x.jsonl", "w") as stream:
        for number in range(6):
            (tmp_path / f"{number}.jpg").write_bytes(jpeg(photo(rng, number % 2, 20, 30)))
            stream.write(json.dumps({"path": f"{number}.jpg", "label": ["cat", "dog"][number % 2]}) + "\n")
    command = ["--source", str(tmp_path / "x.jsonl"), "--output", str(tmp_path / "shards"), "--workers=1"]
    assert build_shards.main(command) == 0
    assert f"{tmp_path / 'x.jsonl'}: the list x.jsonl" in capsys.readouterr().out
    info = DatasetInfo.load(tmp_path / "shards")
    assert (info.splits["train"].num_records, [item.name for item in info.classes]) == (6, ["cat", "dog"])
