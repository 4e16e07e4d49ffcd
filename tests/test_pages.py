"""The page cache: what is in memory, dropping and reading."""

import os
from pathlib import Path

import pytest

from pipelines.system import pages
from pipelines.system.pages import drop_pages, read_pages, share_in_memory


def test_a_file_that_was_read_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1_000_000)
    read_pages(path)
    assert share_in_memory([path]) == 1.0
    (tmp_path / "empty").touch()
    assert share_in_memory([tmp_path / "empty"]) is None
    assert share_in_memory([path, tmp_path / "empty"]) == 1.0


def test_pages_that_were_dropped_are_not_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with open(path, "wb") as stream:
        stream.write(b"x" * 1_000_000)
        os.fsync(stream.fileno())
    drop_pages(path)
    kept = share_in_memory([path])
    if kept == 1.0:
        pytest.skip("this file system is in memory")
    assert kept == 0.0
    with open(path, "rb") as stream:
        stream.seek(500_000)
        stream.read(1)
    assert 0 < (share_in_memory([path]) or 0) <= 1


def test_files_of_another_user_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    monkeypatch.setattr(pages.os, "geteuid", lambda: 12345)
    monkeypatch.setattr(pages.os, "access", lambda *_: False)
    assert share_in_memory([path]) is None
