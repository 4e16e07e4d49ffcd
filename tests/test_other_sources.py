"""The same images in the layouts of other projects give the same data set, built from what their packages write."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kimagenet.commands import build_shards
from pipelines import ShardSet
from pipelines.building import build as build_module
from pipelines.building.build import build
from pipelines.building.options import BuildOptions
from pipelines.building.sources import Scratch, open_source
from pipelines.shards.dataset import DatasetInfo
from tests.helpers import builds, layouts, writers
from tests.helpers.sources import pictures

ROOT = Path(__file__).parents[1]
OPTIONS = BuildOptions(train_shards=2, validation_shards=1)

Write = Callable[[Path, layouts.Classes, layouts.Classes], object]
WRITERS: dict[str, Write] = {
    "Parquet by datasets": writers.hugging_face_parquet,
    "WebDataset by webdataset": writers.webdataset_tars,
    "CSV": writers.csv_list,
}


def build_from(source: Path, output: Path) -> Path:
    """Builds with the command line."""
    flags = ["--train-shards=2", "--validation-shards=1", "--workers=1", "--max-rejected=99"]
    assert build_shards.main(["--source", str(source), "--output", str(output), *flags]) == 0
    return output


def contents(folder: Path) -> dict[str, list[tuple[bytes, int]]]:
    """Image and class of each record of each split, sorted."""
    found = {}
    for split in DatasetInfo.load(folder).splits:
        shards = ShardSet.open(folder, split)
        stored = [shards.read(record) for record in shards.usable.tolist()]
        found[split] = sorted((image.encoded, image.label - shards.label_base) for image in stored)
    return found


def rejected(folder: Path) -> dict[str, str]:
    """Reason by file name, without what only folders can have."""
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    return {Path(item["path"]).name: item["reason"] for item in map(json.loads, lines) if item["path"][-5:] != "x.jpg"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set that the class folders give."""
    folder = tmp_path_factory.mktemp("expected")
    layouts.class_folders(folder / "source", *pictures())
    build(open_source(folder / "source"), folder / "shards", OPTIONS)
    return folder / "shards"


@pytest.mark.parametrize("writer", WRITERS)
def test_the_records_labels_and_classes_are_those_of_folders(expected: Path, tmp_path: Path, writer: str) -> None:
    written = WRITERS[writer](tmp_path / "source", *pictures())
    shards = build_from(written if isinstance(written, Path) else tmp_path / "source", tmp_path / "shards")
    assert contents(shards) == contents(expected)
    infos = [DatasetInfo.load(folder) for folder in (shards, expected)]
    assert infos[0].classes == infos[1].classes
    assert infos[0].build["reencoded"] == infos[1].build["reencoded"]
    assert sorted(rejected(shards).values()) == sorted(rejected(expected).values())
    assert len(rejected(shards)) == 5  # damaged images; the folder x.jpg is not among them
    names = ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001")
    assert [(shards / name).read_bytes() for name in names] == [(expected / name).read_bytes() for name in names]
    assert not (shards / ".build").exists()


def test_all_of_one_folder_is_for_training(expected: Path, tmp_path: Path) -> None:
    train, _ = pictures()
    for wnid, files in train.items():
        layouts.write_folder(tmp_path / "source" / wnid, files)
    (tmp_path / "source" / "README.md").write_text("not an image")
    shards = build_from(tmp_path / "source", tmp_path / "shards")
    assert contents(shards)["train"] == contents(expected)["train"]
    assert rejected(shards) == rejected(expected)


def test_shards_are_a_source(expected: Path, tmp_path: Path) -> None:
    """Nothing is encoded a second time, and quarantined records are left out by name."""
    source = shutil.copytree(expected, tmp_path / "source")
    info = DatasetInfo.load(source)
    train = info.splits["train"].model_copy(update={"quarantine": [5]})
    info.model_copy(update={"splits": {**info.splits, "train": train}}).save(source)
    shards = build_from(source, tmp_path / "shards")
    assert contents(shards) == contents(source)
    assert DatasetInfo.load(shards).classes == info.classes
    assert DatasetInfo.load(shards).build["reencoded"] == {}
    assert list(rejected(shards).values()) == ["in quarantine"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_build_that_is_stopped_continues_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    """A shard that is finished is not written again."""
    train, validation = pictures()
    good = {w: {n: data for n, data in files.items() if n.startswith((w, "Bild"))} for w, files in train.items()}
    written = WRITERS[writer](tmp_path / "source", good, validation)
    source = written if isinstance(written, Path) else tmp_path / "source"
    whole = build_from(source, tmp_path / "whole")
    split_info = build_module._split_info

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "_split_info", stop)
    command = ["--source", str(source), "--output", str(tmp_path / "part"), "--workers=1", "--max-rejected=99"]
    flags = ["--train-shards=2", "--validation-shards=1"]
    assert build_shards.main([*command, *flags]) == 130
    shard = tmp_path / "part" / "train-00000-of-00002"
    before = shard.stat().st_mtime_ns
    monkeypatch.setattr(build_module, "_split_info", split_info)
    assert build_shards.main([*command, *flags]) == 0
    assert shard.stat().st_mtime_ns == before
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "part").iterdir()
    }


# The build is killed when this file appears: a copy of the source, the first finished shard, the second split.
MOMENTS = (".build/source/.*.tmp", ".build/train-*.json", "validation-*")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_build_that_is_killed_again_and_again_gives_the_same_bytes(tmp_path: Path, writer: str) -> None:
    written = WRITERS[writer](tmp_path / "source", *pictures())
    source = written if isinstance(written, Path) else tmp_path / "source"
    whole = build_from(source, tmp_path / "whole")
    output = tmp_path / "part"
    flags = ["--train-shards=2", "--validation-shards=1", "--workers=1", "--max-rejected=99"]
    command = [sys.executable, "-m", "tools.build_shards", "--source", str(source), "--output", str(output), *flags]
    builds.build_with_kills(command, output, MOMENTS)
    assert builds.contents(output) == builds.contents(whole)


@pytest.mark.parametrize("writer", ["Parquet by datasets", "WebDataset by webdataset"])
def test_a_file_that_was_replaced_is_another_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    WRITERS[writer](tmp_path / "source", *pictures())

    def try_build() -> None:
        source = open_source(tmp_path / "source", Scratch(tmp_path / "shards" / ".build" / "source"))
        build(source, tmp_path / "shards", OPTIONS)

    def change() -> None:
        for path in (tmp_path / "source").rglob("*train*"):
            os.utime(path, (1, 1))

    builds.refuses_a_changed_source(try_build, change, monkeypatch)
