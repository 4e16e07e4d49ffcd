"""A run keeps the model file that it began from, so it can be resumed without it."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from kimagenet import cli
from kimagenet.inference import fine_tuning, kept_model
from kimagenet.inference.trained import run_of
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from kimagenet.train_settings import _with_whole_paths
from tests.helpers.runs import final_weights


def begun(run: RunDirectory, model: Path) -> Path | None:
    """Begins a run from a model, or continues it from another one; returns its copy."""
    recipe = Recipe(model=str(model))
    kept_model.keep(run, recipe)
    run.begin(recipe, {})
    return kept_model.find(run, recipe)


@pytest.mark.parametrize("name", ["first.keras", "first.h5"])
def test_a_file_is_kept_as_a_file_of_no_run(tmp_path: Path, name: str) -> None:
    run, model = RunDirectory(tmp_path / "run"), tmp_path / name
    model.write_bytes(b"model")
    assert kept_model.find(run, Recipe(model=str(model))) is None
    copy = begun(run, model)
    assert copy is not None
    model.unlink()
    assert copy.read_bytes() == b"model"
    assert run_of(copy) is None
    assert fine_tuning.is_saved(str(copy))
    assert kept_model.find(run, Recipe(model="other.keras")) is None
    assert kept_model.find(run, Recipe()) is None


@pytest.mark.parametrize("place", ["final", "best"])
def test_a_file_of_a_run_is_kept_with_what_its_run_knows(tmp_path: Path, place: str) -> None:
    first, run = RunDirectory(tmp_path / "first"), RunDirectory(tmp_path / "run")
    first.begin(Recipe(image_size=48), {"classes": ["a", "b"], "dataset_dir": "/its/shards"})
    model = getattr(first, place)
    model.write_bytes(b"model")
    copy, info = begun(run, model), first.read_info()
    shutil.rmtree(first.path)
    assert copy is not None
    origin = run_of(copy)
    assert origin is not None
    assert origin.path != run.path
    assert origin.read_info() == info
    assert Recipe.load(origin.recipe).image_size == 48


def test_the_copy_is_found_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that is there or gone, and of a run; recipe.json has whole paths."""
    monkeypatch.chdir(tmp_path)
    Path("first.keras").write_bytes(b"model")
    first, run = RunDirectory(tmp_path / "first"), RunDirectory(tmp_path / "run")
    begun(run, tmp_path / "first.keras")
    for _ in range(2):
        assert kept_model.find(run, _with_whole_paths(Recipe(model="first.keras"))) is not None
        Path("first.keras").unlink(missing_ok=True)
    first.begin(Recipe(), {})
    first.final.write_bytes(b"model")
    begun(run, first.final)
    assert kept_model.find(run, _with_whole_paths(Recipe(model="first"))) is not None


def test_how_a_run_began_is_not_repeated(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    how = {"pretrained": True, "head_on": "x", "freeze": "3", "unfreeze_epoch": 1, "input_range": "caffe"}
    run.begin(Recipe(epochs=7, zero_gamma=True, **how), {})
    run.final.write_bytes(b"model")
    assert fine_tuning.recipe_of(str(run.path)) == Recipe(epochs=7, model=str(run.final))


def test_another_model_takes_the_place_of_the_copy(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    for name in ("first.keras", "second.keras"):
        (tmp_path / name).write_bytes(name.encode())
        copy = begun(run, tmp_path / name)
        assert copy is not None
        assert copy.read_text() == name
        assert [path.name for path in copy.parent.iterdir()] == [name]


def test_a_network_by_name_is_not_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    kept_model.keep(run, Recipe(model="demo"))
    assert not run.path.exists()


@pytest.mark.slow
def test_a_run_is_resumed_without_the_model_that_it_began_from(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kimagenet import models, train
    from kimagenet.runs.reporters import JsonLines
    from tests.test_resume import at_step, send

    model = tmp_path / "first.keras"
    models.build("demo", 7, 32, 0.1).save(model)  # its head is replaced, for ten classes
    runs = [RunDirectory(tmp_path / name) for name in ("whole", "run")]
    flags = ["--image-size=32", "--batch-size=25", "--workers=1", "--loader=tfdata", "--epochs=2", "--dropout-rate=0.2"]
    arguments = [str(model), *flags, f"--dataset-dir={tiny_dataset}"]
    assert train.main([*arguments, f"--output={runs[0].path}"]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(JsonLines, "on_train_batch_end", at_step(3, lambda: send(signal.SIGTERM)))
        assert train.main([*arguments, f"--output={runs[1].path}"]) == cli.EXIT_RESUME
    model.unlink()
    assert train.main(["--resume", f"--output={runs[1].path}"]) == 0, capsys.readouterr().err
    for a, b in zip(*map(final_weights, runs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert train.main(["--resume", f"--output={runs[1].path}"]) == 0
    assert "this run is finished" in capsys.readouterr().out
