"""Shards that dataset.json does not list are named by check_shards, and what build_index passes over by build_index."""

import logging
from pathlib import Path

import pytest

from pipelines.building.adopt import adopt_shards
from pipelines.building.check import check_shards
from pipelines.shards.dataset import DatasetInfo
from tests.test_class_names import texts, write_shard, write_splits

ROWS = texts("cat", "dog")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_splits(tmp_path, {"train": [ROWS]})
    adopt_shards(tmp_path)
    assert check_shards(tmp_path).faults == ()
    return tmp_path


def found(folder: Path) -> list[tuple[str, str]]:
    return [(fault.file, fault.reason) for fault in check_shards(folder).faults]


def test_a_split_that_was_copied_later_is_named_and_the_printed_command_lists_it(folder: Path) -> None:
    write_splits(folder, {"validation": [ROWS, ROWS]})
    ((file, reason),) = found(folder)
    assert file == "validation-00000-of-00002"
    assert reason.startswith("dataset.json does not list 2 such files; remove them, or run `")
    assert "build_index" in reason
    adopt_shards(folder)
    assert list(DatasetInfo.load(folder).splits) == ["train", "validation"]
    assert found(folder) == []


def test_shards_of_another_count_are_named(folder: Path) -> None:
    write_splits(folder, {"train": [ROWS, ROWS]})
    ((file, reason),) = found(folder)
    assert file == "train-00000-of-00002"
    assert reason.startswith(
        "dataset.json does not list 2 such files; remove them or the listed shards of this split, and"
    )
    (folder / "train-00000-of-00001").unlink()
    adopt_shards(folder)
    assert DatasetInfo.load(folder).splits["train"].num_records == 4
    assert found(folder) == []


@pytest.mark.parametrize("name", ["validation-0000-of-0001", "my.data.7-of-9.tfrecord", "validation 00000-of-00001"])
def test_a_name_that_is_not_that_of_a_shard_is_named_by_both(
    folder: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_shard(folder, name, ROWS)
    caplog.set_level(logging.WARNING)
    adopt_shards(folder)
    (line,) = caplog.messages
    assert line.startswith(f"{folder}: not used: {name}; this file has no name of a shard")
    ((file, reason),) = found(folder)
    assert file == name
    assert reason.endswith(
        "rename it in the form train-00000-of-00001 (split, number, count), and run build_index again"
    )
    (folder / name).rename(folder / "validation-00000-of-00001")
    caplog.clear()
    adopt_shards(folder)
    assert caplog.messages == []
    assert found(folder) == []


def test_indexes_sizes_and_files_of_other_formats_are_no_shards(folder: Path) -> None:
    for name in ("train-00000-of-00009.parquet", "part-0001-of-0002.tar", "validation-0000-of-0001.idx", ".a-1-of-2"):
        (folder / name).touch()
    assert found(folder) == []
