"""Paths as users write them, and file systems that lack something: no home folder, no fsync, no /dev/shm."""

import errno
import os
import shlex
import stat
import sys
from pathlib import Path

import pytest

from kimagenet import cli, predict, train_flags, train_settings
from kimagenet.training.cluster import Cluster
from pipelines import UserError
from pipelines.building.sources.layouts import recognize
from pipelines.shards import remedies
from pipelines.shards.dataset import DatasetInfo
from pipelines.shards.shard_set import ShardSet
from pipelines.system import files, processes
from pipelines.system.files import cache_directory, sync, user_path, write_atomic
from tests.helpers.messages import messages


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who is only a number, as in `docker run --user 12345`."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


@pytest.mark.parametrize("arguments", [["--output=~/run"], ["--output", "~/run"]])
def test_every_path_flag_reads_the_home_folder(home: Path, arguments: list[str]) -> None:
    parser = cli.Parser("x", "", "")
    parser.add_argument_group("files").add_argument("--output", type=Path)
    assert parser.parse_args(arguments).output == home / "run"
    assert parser.parse_args(["--output=a~/[b]"]).output == Path("a~/[b]")


@pytest.mark.parametrize(
    ("text", "message"),
    [("~nosuchuser/x", "~nosuchuser/x: this home folder is not known; write the whole path"), ("", "a path is empty")],
)
def test_paths_that_cannot_be_read_get_one_line(text: str, message: str, capsys: pytest.CaptureFixture) -> None:
    parser = cli.Parser("x", "", "")
    parser.add_argument("--output", type=Path)
    assert cli.run(parser, lambda _: 0, [f"--output={text}"]) == cli.EXIT_USER_ERROR
    assert message in capsys.readouterr().err
    with pytest.raises(UserError):
        user_path(text)


def test_library_functions_read_paths_in_the_same_way(home: Path) -> None:
    with pytest.raises(UserError, match=f"^{home}/data: no such folder"):
        recognize("~/data")
    for act in (lambda: ShardSet.open("~nosuchuser/x", "train"), lambda: recognize("~nosuchuser/x")):
        with pytest.raises(UserError, match="this home folder is not known"):
            act()
    (home / "images").mkdir()
    (home / "images" / "a.jpg").touch()
    assert list(predict.list_files(["~/images"])) == [home / "images" / "a.jpg"]


def test_models_and_recipes_are_paths_too(home: Path) -> None:
    (home / "m.keras").touch()
    flags = train_flags.make_parser().parse_args(["~/m.keras"])
    assert train_settings.resolve_recipe(flags)[0].model == str(home / "m.keras")
    flags = train_flags.make_parser().parse_args(["--recipe=~/r.json"])
    with pytest.raises(UserError, match=f"^{home}/r.json"):
        train_settings.resolve_recipe(flags)


def test_without_a_home_folder_the_cache_is_private_in_the_temporary_folder(
    no_home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = cache_directory()
    assert folder == tmp_path / f"kimagenet-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cache_directory() == folder
    folder.chmod(0o777)
    with pytest.raises(UserError, match=r"not a private folder of this user.*set XDG_CACHE_HOME"):
        cache_directory()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(UserError, match="not a private folder"):
        cache_directory()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_directory() == tmp_path / "cache" / "kimagenet"


def test_without_a_home_folder_training_takes_the_demo(
    no_home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    flags = train_flags.make_parser().parse_args([])
    assert train_settings.resolve(flags, Cluster()).is_demo


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_is_no_failed_write(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomic(tmp_path / "x", b"content")
    assert (tmp_path / "x").read_bytes() == b"content"
    sync(tmp_path)


def test_a_failed_sync_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_atomic(tmp_path / "x", b"content")
    assert caught.value.filename == str(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("letter", ["x", "é"])
def test_the_longest_names_are_written(letter: str, tmp_path: Path) -> None:
    name = (letter * 255).encode()[:254].decode()
    write_atomic(tmp_path / name, b"content")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("error", [OSError(errno.EROFS, "Read-only file system"), ImportError("no sem_open")])
def test_without_shared_memory_the_work_is_done_in_this_process(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(processes, "ProcessPoolExecutor", refuse)
    with messages("pipelines", caplog):
        assert list(processes.run_tasks(abs, [-1, -2, -3], 2)) == [1, 2, 3]
    assert caplog.text.count("/dev/shm: cannot be used") == 1


def test_too_many_open_files_is_not_blamed_on_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(processes, "ProcessPoolExecutor", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        list(processes.run_tasks(abs, [-1, -2], 2))


@pytest.mark.parametrize("name", ["a [b]", "what?", "50%*", "~", "back\\slash"])
def test_odd_names_of_folders_are_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        DatasetInfo.load(tmp_path / name)
    (tmp_path / name).mkdir()
    write_atomic(tmp_path / name / "x", b"")
    files.remove_leftovers(tmp_path / name)
    assert [path.name for path in (tmp_path / name).iterdir()] == ["x"]


@pytest.mark.parametrize("name", ["my run", "it's", "$HOME;ls", "a\tb", "plain"])
def test_printed_commands_can_be_pasted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", f"/opt/{name}/python")
    expected = [f"/opt/{name}/python", "-m", "kimagenet.evaluate", str(tmp_path / name)]
    assert shlex.split(remedies.module("kimagenet.evaluate", tmp_path / name)) == expected
    command = remedies.build_shards(tmp_path / name, name).strip("`")
    assert shlex.split(command)[-4:] == ["--source", str(tmp_path / name), "--output", name]
