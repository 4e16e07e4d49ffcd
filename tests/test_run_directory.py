"""The folder of a run at its begin: what cannot become one is refused in one line, before TensorFlow is imported."""

from pathlib import Path
from types import ModuleType

import pytest

from kimagenet import evaluate, models, train
from kimagenet.runs.directory import RunDirectory
from pipelines import UserError


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


@pytest.mark.parametrize("command", [train, evaluate], ids=["train", "evaluate"])
def test_a_data_set_that_was_moved_is_asked_for(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = RunDirectory(tmp_path / "run"), tmp_path / "moved"
    run.begin(models.recipes()["demo"], {"dataset_dir": str(data), "classes": [], "wnids": [], "short_side": None})
    run.final.touch()
    arguments = ["--resume", f"--output={run.path}"] if command is train else [str(run.path)]
    assert command.main(arguments) == 2
    assert capsys.readouterr().err == (
        f"error: {run.path}: there is no folder {data} with its data set; say where the data set is now (--dataset-dir)\n"
    )
    assert command.main([*arguments, f"--dataset-dir={tmp_path / 'nowhere'}"]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
