"""The files of the fetcher: few are open at a time, and what is known of them."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipelines import ShardSet
from pipelines.storage import ways
from pipelines.storage.open_files import OpenFiles, most_files, read_ahead
from pipelines.storage.page_cache import is_cached
from pipelines.storage.spans import PAGE
from tests.helpers.sparse import sparse_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return sparse_shards(tmp_path_factory.mktemp("sparse"), [2, 2, 2])


def open_shards(shards: ShardSet) -> list[str]:
    """The shards that this process has open."""
    folder = Path("/proc/self/fd")
    links = [os.readlink(entry) for entry in folder.iterdir() if entry.is_symlink()]
    return [link for link in links if link in {str(path) for path in shards.paths}]


def test_files_that_were_used_longest_ago_are_closed(shards: ShardSet) -> None:
    files = OpenFiles(2)
    first, second, third = shards.paths
    descriptor = files.open(first).descriptor
    files.open(second)
    assert files.open(first).descriptor == descriptor
    files.open(third)
    assert sorted(open_shards(shards)) == [str(first), str(third)]
    files.close()
    assert not open_shards(shards)
    files.open(first)
    del files
    assert not open_shards(shards)


def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    files = OpenFiles(1)
    with pytest.raises(OSError, match="Illegal seek"):
        ways.advise(files.open(tmp_path / "fifo").descriptor, 0, PAGE)
    files.close()


@pytest.mark.parametrize(
    ("text", "expected"), [("128", 128 << 10), ("8192", 8192 << 10), ("0", 128 << 10), ("?", 128 << 10)]
)
def test_the_read_ahead_is_the_devices(tmp_path: Path, text: str, expected: int) -> None:
    (tmp_path / "7:1").mkdir()
    (tmp_path / "7:1" / "read_ahead_kb").write_text(f"{text}\n")
    assert read_ahead(os.makedev(7, 1), tmp_path) == expected
    assert read_ahead(os.makedev(7, 2), tmp_path) == 128 << 10


def test_few_files_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1000, 1 << 20))
    assert most_files(24, 1) == 24
    assert most_files(1024, 1) == 250
    assert most_files(1024, 5) == 50
    assert most_files(1024, 10_000) == 1
    monkeypatch.setattr("resource.getrlimit", lambda _: (-1, -1))
    assert most_files(1024, 1) == 1024


def test_what_was_read_is_in_memory_and_a_hole_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(5 * PAGE + 1))
    with open(path, "rb") as stream:
        stream.read()
        assert is_cached(stream.fileno(), 0, PAGE)
        assert is_cached(stream.fileno(), 4 * PAGE, 6 * PAGE)
        assert is_cached(stream.fileno(), 8 * PAGE, 9 * PAGE)  # after the end there is nothing to fetch
    os.truncate(path, 0)
    os.truncate(path, 8 * PAGE)
    with open(path, "rb") as stream:
        assert not is_cached(stream.fileno(), 0, 4 * PAGE)
