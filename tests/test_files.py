"""Files that are whole or absent: what is left after an error, and which file the error names."""

import errno
import gzip
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kimagenet.json_output import check_writable
from pipelines.errors import UserError
from pipelines.system import streams
from pipelines.system.files import atomic_folder, atomic_writer, write_atomic
from tests.helpers.messages import messages


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


def test_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "target").write_bytes(b"before")
    for name, target in (("link", "far/target"), ("chain", "link"), ("new", "far/new")):
        (tmp_path / name).symlink_to(target)
        write_atomic(tmp_path / name, name.encode())
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_bytes() == name.encode()
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["new", "target"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links") as caught:
        write_atomic(tmp_path / "loop", b"")
    assert str(caught.value.filename) == str(tmp_path / "loop")


def test_a_fifo_gets_the_content_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with ThreadPoolExecutor(1) as threads:
        read = threads.submit(path.read_bytes)
        write_atomic(path, b"content" * 100_000)  # more than a pipe holds
        assert read.result() == b"content" * 100_000
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


def test_a_fifo_without_a_reader_is_named_and_one_whose_reader_ends_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streams, "_QUIET", 0.1)
    path = tmp_path / "fifo"
    os.mkfifo(path)

    def read_a_little() -> None:
        time.sleep(0.5)
        with open(path, "rb", buffering=0) as stream:
            stream.read(1)

    with messages("pipelines", caplog), ThreadPoolExecutor(1) as threads:
        threads.submit(read_a_little)
        with pytest.raises(UserError, match=f"{path}: its reader ended"):
            write_atomic(path, b"content" * 100_000)
    assert caplog.text.count("waiting for a process that reads this FIFO") == 1


def test_devices_and_streams_are_written_through(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    check_writable(Path("/dev/null"))
    write_atomic(Path("/dev/null"), b"content")
    assert Path("/dev/null").is_char_device()
    (tmp_path / "out").symlink_to("/dev/stdout")
    for path in (Path("/dev/stdout"), Path("/dev/fd/1"), Path("/proc/self/fd/1"), tmp_path / "out"):
        check_writable(path)
        write_atomic(path, b"content\n")
    assert capfd.readouterr().out == 4 * "content\n"  # capfd redirects into a file, which is not cut off
    assert (tmp_path / "out").is_symlink()
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomic(Path("/dev/full"), b"content")
    assert caught.value.filename == "/dev/full"


def test_a_file_that_is_a_mount_point_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    (tmp_path / "x").write_bytes(b"before")
    monkeypatch.setattr(os, "replace", busy)
    write_atomic(tmp_path / "x", b"after")
    assert (tmp_path / "x").read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "x").touch(mode=0o600)
    write_atomic(tmp_path / "x", b"secret")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600


@pytest.mark.parametrize("how", ["new", "empty", "link", "link to nothing", "working folder", "after a kill"])
def test_a_folder_is_filled_and_not_replaced(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    if how.startswith("link"):
        path.symlink_to("far")
    if how != "new" and how != "link to nothing":
        (tmp_path / "far" if how == "link" else path).mkdir(mode=0o750)
    if how == "after a kill":
        (path / ".kimagenet-unfinished.1.tmp" / "sub").mkdir(parents=True)
    if how == "working folder":
        monkeypatch.chdir(path)
    before = path.stat().st_ino if path.exists() else None
    with atomic_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_bytes(b"x")
        (folder / "y").write_bytes(b"y")
    assert sorted(str(found.relative_to(path)) for found in path.rglob("*")) == ["sub", "sub/x", "y"]
    assert path.is_symlink() == how.startswith("link")
    assert before in (None, path.stat().st_ino)
    assert not list(tmp_path.glob(".*"))


def test_a_failure_leaves_an_empty_folder_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_folder(tmp_path) as folder:
        (folder / "a").open()
    assert caught.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    rename = os.rename

    def fail_at_b(source: Path, target: Path) -> None:
        if target.name == "b":
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_at_b)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(tmp_path) as folder:
        [(folder / name).mkdir() for name in "ab"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path):
        (tmp_path / "other").touch()
    assert list(tmp_path.iterdir()) == [tmp_path / "other"]
