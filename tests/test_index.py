"""Indexes: equal to DALI's own tool, and refused when they do not fit their shard."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import ShardSet, UserError
from pipelines.index import index_path, locate, read_index, scan

SHARD = "train-00001-of-00003"


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny_dataset, tmp_path / "shards")


def test_equal_to_dalis_own_tool(tiny_dataset: Path, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("tfrecord2idx")
    if not command.exists():
        pytest.skip("DALI, whose tfrecord2idx is compared with, is not installed")
    theirs = tmp_path / "theirs.idx"
    subprocess.run([sys.executable, command, tiny_dataset / SHARD, theirs], check=True, capture_output=True)
    assert scan(tiny_dataset / SHARD).to_bytes() == theirs.read_bytes()
    assert index_path(tiny_dataset / SHARD).read_bytes() == theirs.read_bytes()


def _shorten(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _lengthen(path: Path) -> None:
    index = path.read_bytes()
    path.write_bytes(index + b"%d 100\n" % sum(map(int, index.splitlines()[-1].split())))


def _skip_a_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))


def _of_another_shard(path: Path) -> None:
    shutil.copy(path.with_name("train-00000-of-00003.idx"), path)


INDEX_DAMAGES: dict[str, Callable[[Path], object]] = {
    "short": _shorten,
    "overlong": _lengthen,
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "skips a record": _skip_a_line,
    "stale": _of_another_shard,
    "no index": lambda path: path.write_bytes(b"\x00\x01garbage"),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGES)
def test_a_damaged_index_is_refused_by_name(dataset: Path, damage: str) -> None:
    path = dataset / f"{SHARD}.idx"
    INDEX_DAMAGES[damage](path)
    with pytest.raises(UserError) as caught:
        ShardSet.open(dataset, "train")
    message = str(caught.value)
    assert str(path) in message
    assert "tools.build_index" in message
    assert "\n" not in message
    ShardSet.open(dataset, "validation")  # the other split is whole


@pytest.mark.parametrize("kept", [0, 10, 500, -1])
def test_a_truncated_shard_is_refused_by_name(dataset: Path, kept: int) -> None:
    shard = dataset / SHARD
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"dataset\.json says"):
        ShardSet.open(dataset, "train")
    for read in (scan, read_index):
        with pytest.raises(UserError, match=SHARD):
            read(shard)


def test_a_damaged_header_is_found(dataset: Path) -> None:
    shard = dataset / SHARD
    data = bytearray(shard.read_bytes())
    second = int(scan(shard).offsets[1])
    data[second] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=f"byte {second}"):
        scan(shard)


@pytest.mark.parametrize("whole_lines", [True, False])
def test_records_behind_damaged_headers_are_found_again(dataset: Path, whole_lines: bool) -> None:
    """Two neighbours are damaged, in the length and in its CRC; a line of the index far from them is, too."""
    shard = dataset / SHARD
    index = scan(shard)
    data = bytearray(shard.read_bytes())
    data[index.offsets[3] + 7] ^= 64
    data[index.offsets[4] + 9] ^= 1
    shard.write_bytes(data)
    lines = index.to_bytes().splitlines(keepends=True)
    lines[8 if whole_lines else 4] = b"x\n"
    index_path(shard).write_bytes(b"".join(lines))
    found, damaged = locate(shard)
    if whole_lines:
        assert found.to_bytes() == index.to_bytes()
        assert set(damaged) == {3, 4}
    else:
        assert found.num_records == index.num_records - 1
        assert set(damaged) == {3}
