"""Files that are whole or absent: what stays after an error, and whose name it bears."""

import errno
import gzip
from pathlib import Path

import pytest

from pipelines.system.files import atomic_folder, atomic_writer, write_atomic


def test_a_missing_folder_is_reported_by_the_name_that_was_given(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "x.png"
    with pytest.raises(FileNotFoundError) as caught:
        write_atomic(path, b"")
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as caught, atomic_folder(path):
        pass
    assert caught.value.filename == str(path)


def test_so_is_a_folder_that_stands_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        write_atomic(tmp_path, b"")
    assert caught.value.filename == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not list(tmp_path.parent.glob(".*.tmp"))


def test_so_is_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError) as caught:
        write_atomic(tmp_path / "file" / "x", b"")
    assert caught.value.filename == str(tmp_path / "file" / "x")


def test_so_is_a_write_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match="No space left") as caught, atomic_writer(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_that_have_words_of_their_own_keep_them(tmp_path: Path) -> None:
    with pytest.raises(gzip.BadGzipFile, match=r"^no gzip$"), atomic_writer(tmp_path / "x"):
        raise gzip.BadGzipFile("no gzip")


def test_a_file_inside_of_a_folder_keeps_its_own_name_and_others_theirs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_folder(tmp_path / "new") as folder:
        (folder / "sub" / "file").write_bytes(b"")
    assert caught.value.filename == str(tmp_path / "new" / "sub" / "file")
    with pytest.raises(FileNotFoundError) as caught, atomic_writer(tmp_path / "copy"):
        (tmp_path / "source").read_bytes()
    assert str(caught.value.filename) == str(tmp_path / "source")
    assert list(tmp_path.iterdir()) == []
