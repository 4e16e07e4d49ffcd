"""Indexes equal those of DALI's tool, and are refused if they do not fit their shard."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines import ShardSet, UserError
from pipelines.shards.index import Index, index_path, open_shard, read_index, scan, walk, write_index
from pipelines.shards.records import frame

SHARD = "train-00001-of-00003"


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny_dataset, tmp_path / "shards")


def locate(shard: Path) -> tuple[Index, dict[int, str]]:
    """The index of a shard that may be damaged, and what is wrong with a header by record number."""
    with open_shard(shard) as file:
        found = list(walk(file))
        assert list(walk(file, margin=100)) == found
    table = np.array([(start, size) for start, size, _ in found], np.int64)
    damaged = {number: problem for number, (_, _, problem) in enumerate(found) if problem}
    return Index(table[:, 0], table[:, 1]), damaged


@pytest.mark.slow
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


def _skip_the_first_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def _of_another_shard(path: Path) -> None:
    shutil.copy(path.with_name("train-00000-of-00003.idx"), path)


INDEX_DAMAGES: dict[str, Callable[[Path], object]] = {
    "short": _shorten,
    "overlong": _lengthen,
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "skips a record": _skip_a_line,
    "skips the first record": _skip_the_first_line,
    "stale": _of_another_shard,
    "no index": lambda path: path.write_bytes(b"\x00\x01garbage"),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGES)
def test_a_damaged_index_is_refused_by_name(dataset: Path, damage: str) -> None:
    path = dataset / f"{SHARD}.idx"
    INDEX_DAMAGES[damage](path)
    with pytest.raises(UserError, match=SHARD):
        read_index(dataset / SHARD)
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


def test_a_whole_shard_is_located_with_or_without_its_index(dataset: Path) -> None:
    shard = dataset / SHARD
    for _ in range(2):
        found, damaged = locate(shard)
        assert found.to_bytes() == scan(shard).to_bytes()
        assert damaged == {}
        index_path(shard).unlink(missing_ok=True)


def test_scanning_closes_the_shard(dataset: Path) -> None:
    def lowest_free() -> int:
        descriptor = os.open(dataset, os.O_RDONLY)
        os.close(descriptor)
        return descriptor

    before = lowest_free()
    scan(dataset / SHARD)
    (dataset / SHARD).write_bytes(b"x")
    with pytest.raises(UserError):
        scan(dataset / SHARD)
    gc.collect()
    assert lowest_free() == before


def test_a_damaged_header_is_found(dataset: Path) -> None:
    shard = dataset / SHARD
    data = bytearray(shard.read_bytes())
    second = int(scan(shard).offsets[1])
    data[second] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=f"byte {second}"):
        scan(shard)


@pytest.mark.parametrize("whole_lines", [True, False])
def test_records_after_damaged_headers_are_found(dataset: Path, whole_lines: bool) -> None:
    """Two neighbours are damaged, in the length and in its CRC. A line of the index far from them is damaged, too."""
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


@pytest.mark.parametrize("piece", [1, 2, 13, 1000])
def test_a_header_is_found_across_the_pieces_of_the_search(
    dataset: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = dataset / SHARD
    index = scan(shard)
    data = bytearray(shard.read_bytes())
    data[index.offsets[3] + 9] ^= 1
    shard.write_bytes(data)
    monkeypatch.setattr("pipelines.shards.index._PIECE", piece)
    index_path(shard).unlink()
    found, damaged = locate(shard)
    assert found.to_bytes() == index.to_bytes()
    assert damaged == {3: "its header is damaged"}


def test_a_large_record_after_damage_is_found(tmp_path: Path) -> None:
    """From 16 MiB on, the fourth byte of a length is not 0."""
    shard = tmp_path / "shard"
    first, large = frame(b"first"), frame(b"x" * (1 << 24))
    shard.write_bytes(b"\xff" + first[1:] + large)
    assert locate(shard)[0].sizes.tolist() == [len(first), len(large)]


def test_a_cut_off_record_after_damage_counts_as_damage(dataset: Path) -> None:
    shard = dataset / SHARD
    index = scan(shard)
    data = bytearray(shard.read_bytes())
    data[index.offsets[-2]] ^= 1
    shard.write_bytes(data[:-1])
    index_path(shard).unlink()
    found, damaged = locate(shard)
    assert found.offsets.tolist() == index.offsets.tolist()[:-1]
    assert damaged == {index.num_records - 2: "its header is damaged"}


def test_a_written_index_is_read_again(dataset: Path) -> None:
    shard = dataset / SHARD
    index_path(shard).unlink()
    write_index(shard, scan(shard))
    assert read_index(shard).to_bytes() == scan(shard).to_bytes()


def test_zeros_in_a_record_are_not_a_header(tmp_path: Path) -> None:
    """Eight zeros and their CRC are a whole header of an empty record. After damage they do not count as a header."""
    shard = tmp_path / "shard"
    inner = frame(b"") + bytes(64)
    whole = [frame(b"first" + inner), frame(b"second")]
    shard.write_bytes(b"\xff" + b"".join(whole)[1:])
    found, damaged = locate(shard)
    assert found.offsets.tolist() == [0, len(whole[0])]
    assert found.sizes.tolist() == [len(part) for part in whole]
    assert set(damaged) == {0}


@pytest.mark.parametrize("kept", [1, 11, 12, 15, -1])
def test_a_record_that_is_cut_off_is_located(dataset: Path, kept: int) -> None:
    """The cut may be in the header, right after it, or later. An empty record would have 16 bytes."""
    shard = dataset / SHARD
    index = scan(shard)
    last = int(index.offsets[-1])
    end = last + kept if kept > 0 else index.end + kept
    shard.write_bytes(shard.read_bytes()[:end])
    found, damaged = locate(shard)
    assert found.offsets.tolist() == index.offsets.tolist()
    assert found.end == end
    assert damaged == {index.num_records - 1: "it is cut off"}


def test_lines_of_the_index_are_used_only_if_they_reach_the_next_record(dataset: Path) -> None:
    """Records 3 and 4 are damaged. With a line that is too long, of size 0, or missing, the two count as one."""
    shard = dataset / SHARD
    index = scan(shard)
    data = bytearray(shard.read_bytes())
    data[index.offsets[3]] ^= 1
    data[index.offsets[4]] ^= 1
    shard.write_bytes(data)
    lines = index.to_bytes().splitlines(keepends=True)
    for wrong in (b"%d %d\n" % (index.offsets[4], index.sizes[4] + 1), b"%d 0\n" % index.offsets[4], None):
        if wrong is None:
            index_path(shard).unlink()
        else:
            index_path(shard).write_bytes(b"".join([*lines[:4], wrong, *lines[5:]]))
        found, damaged = locate(shard)
        assert found.offsets.tolist() == [*index.offsets[:4], *index.offsets[5:]]
        assert damaged == {3: "its header is damaged"}


def test_missing_and_empty_shards_are_refused(dataset: Path) -> None:
    shard = dataset / SHARD
    shard.write_bytes(b"")
    for read in (scan, locate):
        with pytest.raises(UserError, match=f"{SHARD}: the shard is empty"):
            read(shard)
    shard.unlink()
    for read in (scan, locate, read_index):
        with pytest.raises(UserError, match=f"{SHARD}: No such file"):
            read(shard)
