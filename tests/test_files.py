"""Files that are whole or absent: what is left after an error, and which file the error names."""

import errno
import gzip
from pathlib import Path

import pytest

from pipelines.system.files import atomic_folder, atomic_writer, write_atomic


def test_an_error_about_a_missing_folder_names_the_users_path(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "x.png"
    with pytest.raises(FileNotFoundError) as caught:
        write_atomic(path, b"")
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as caught, atomic_folder(path):
        pass
    assert caught.value.filename == str(path)


def test_an_error_about_a_folder_in_place_of_the_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        write_atomic(tmp_path, b"")
    assert caught.value.filename == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not list(tmp_path.parent.glob(".*.tmp"))


def test_an_error_about_a_file_in_place_of_a_folder_names_the_users_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError) as caught:
        write_atomic(tmp_path / "file" / "x", b"")
    assert caught.value.filename == str(tmp_path / "file" / "x")


def test_a_failed_write_names_the_users_path_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match="No space left") as caught, atomic_writer(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_other_errors_are_not_changed(tmp_path: Path) -> None:
    with pytest.raises(gzip.BadGzipFile, match=r"^no gzip$"), atomic_writer(tmp_path / "x"):
        raise gzip.BadGzipFile("no gzip")


def test_an_error_about_a_file_in_the_folder_or_elsewhere_names_that_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_folder(tmp_path / "new") as folder:
        (folder / "sub" / "file").write_bytes(b"")
    assert caught.value.filename == str(tmp_path / "new" / "sub" / "file")
    with pytest.raises(FileNotFoundError) as caught, atomic_writer(tmp_path / "copy"):
        (tmp_path / "source").read_bytes()
    assert str(caught.value.filename) == str(tmp_path / "source")
    assert list(tmp_path.iterdir()) == []
