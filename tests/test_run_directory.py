"""The folder of a run at its begin: what cannot become one is refused in one line, before TensorFlow is imported."""

from pathlib import Path
from types import ModuleType

import pytest

from kimagenet import evaluate, models, train
from kimagenet.recipe import Recipe
from kimagenet.runs import directory
from kimagenet.runs.directory import RunDirectory
from pipelines import UserError
from pipelines.system.files import write_own


def link(path: Path, target: Path | str) -> Path:
    path.symlink_to(target)
    return path


@pytest.mark.parametrize("inside", [".", "run", "a/run"])
@pytest.mark.parametrize("target", ["link", "../{folder}/link", "nowhere", "/nowhere/at/all"])
def test_a_link_that_leads_nowhere_is_no_output(tmp_path: Path, target: str, inside: str) -> None:
    target = target.format(folder=tmp_path.name)
    path = link(tmp_path / "link", target)
    with pytest.raises(UserError) as caught:
        RunDirectory.at(path / inside)
    assert str(caught.value) == f"{path}: a link to {target}, which leads nowhere; choose another output folder"
    assert caught.value.setting == "output"


def test_a_file_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run", link(tmp_path / "link", "file") / "run"):
        with pytest.raises(UserError, match=r"(file|link): not a folder; choose another output folder"):
            RunDirectory.at(path)


def test_a_link_to_a_folder_is_an_output(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = link(tmp_path / "link", "folder")
    assert not RunDirectory.at(path).is_begun
    assert RunDirectory.at(path / "new" / "run").path == path / "new" / "run"


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("calls", range(4))
def test_a_run_whose_begin_was_killed_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Killed before or after each of the two files, also while one is written."""
    left = iter(range(calls))

    def write(path: Path, data: bytes) -> None:
        if next(left, None) is None:
            path.with_name(f".{path.name}.99999.tmp").write_bytes(data[:9])
            raise Killed
        write_own(path, data)
        if next(left, None) is None:
            raise Killed

    path = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(directory, "write_own", write)
        with pytest.raises(Killed):
            RunDirectory.at(path).begin(Recipe(), {})
    run = RunDirectory.at(path)
    if not run.is_begun:
        with run.owned():
            run.check_new()
            run.begin(Recipe(), {"a": "b"})
        assert run.read_info()["a"] == "b"
    assert Recipe.load(run.recipe) == Recipe()
    assert not list(path.glob(".*.tmp"))


@pytest.mark.parametrize("name", ["recipe.json", "log.jsonl", "final.keras", "checkpoints/step-000000001.ckpt"])
def test_other_files_of_a_run_are_never_overwritten(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / "run" / name, tmp_path / "run" / "checkpoints" / "last.keras"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with pytest.raises(UserError, match=r"run: has files of a run, but no run\.json; choose another output folder"):
            RunDirectory.at(tmp_path / "run")


@pytest.mark.parametrize("command", [train, evaluate], ids=["train", "evaluate"])
def test_a_data_set_that_was_moved_is_asked_for(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = RunDirectory(tmp_path / "run"), tmp_path / "moved"
    run.begin(models.recipes()["demo"], {"dataset_dir": str(data), "classes": [], "wnids": [], "short_side": None})
    run.final.touch()
    arguments = ["--resume", f"--output={run.path}"] if command is train else [str(run.path)]
    assert command.main(arguments) == 2
    what = f"{run.path}: there is no folder {data} with its data set; say where the data set is now (--dataset-dir)"
    assert capsys.readouterr().err == f"error: {what}\n"
    assert command.main([*arguments, f"--dataset-dir={tmp_path / 'nowhere'}"]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
