"""The models' recipes and reported accuracies. They are read without Keras."""

import json
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from kimagenet import models
from kimagenet.inference import trained
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from kimagenet.runs.identity import check_same
from kimagenet.train_flags import make_parser
from kimagenet.train_settings import resolve
from kimagenet.training.cluster import Cluster
from pipelines import UserError
from pipelines.shards.dataset import DatasetInfo
from tests.helpers.programs import run_program


@pytest.mark.parametrize("name", models.names())
def test_each_model_has_its_recipe(name: str) -> None:
    recipe = models.recipes()[name]
    assert recipe.model == name
    assert name in models.reported()


def test_recipes_and_reports_have_the_same_keys() -> None:
    assert set(models.recipes()) == set(models.reported())
    assert all(recipe.model in models.names() for recipe in models.recipes().values())


@pytest.mark.parametrize("name", models.names())
def test_a_model_file_opens_with_its_commands_and_the_reported_accuracy(name: str) -> None:
    file = import_module(f"kimagenet.models.{name}")
    lines = [line.split() for line in (file.__doc__ or "").splitlines() if "python -m" in line]
    assert [line[4] for line in lines] == list(file.RECIPES)
    for recipe, line in zip(file.RECIPES, lines, strict=True):
        command, _, comment = " ".join(line).partition(" # ")
        assert command == f"python -m kimagenet.train --recipe {recipe} --dataset-dir DIR"
        top1 = file.REPORTED[recipe].top1
        assert ("no figure" if top1 is None else f"{top1:.2%}") in comment


def test_no_two_files_have_a_recipe_of_the_same_name() -> None:
    files = [import_module(f"kimagenet.models.{name}") for name in models.names()]
    assert sum(len(file.RECIPES) for file in files) == len(models.recipes())


@pytest.mark.parametrize(
    ("name", "optimizer", "batch", "dropout", "weight_decay", "final_lr", "epochs", "top1"),
    [
        ("mobilenet_v2", "adam", 64, 0.2, 3e-5, 1e-5, 80, 0.7054),
        ("resnet50", "adam", 16, 0.5, 2e-4, 1e-5, 80, None),
        ("googlenet_bn", "adam", 32, 0.4, 2e-4, 1e-5, 60, 0.7091),
        ("inception_v2", "adam", 32, 0.4, 2e-4, 1e-5, 80, 0.7234),
        ("inception_v2x", "adam", 64, 0.4, 2e-4, 1e-5, 80, None),
        ("inception_mobilenet", "adam", 64, 0.4, 2e-4, 1e-5, 80, None),
        ("efficientnet_b0", "sgd", 16, 0.2, 3e-5, 1e-4, 60, 0.7318),
        ("osnet", "adam", 32, 0.2, 1e-5, 1e-5, 60, 0.6474),
    ],
)
def test_recipes_are_those_of_train_new_sh(
    name: str,
    optimizer: str,
    batch: int,
    dropout: float,
    weight_decay: float,
    final_lr: float,
    epochs: int,
    top1: float | None,
) -> None:
    recipe = models.recipes()[name]
    assert recipe.optimizer == optimizer
    assert (recipe.batch_size, recipe.iter_size, recipe.image_size) == (batch, 1, 224)
    assert (recipe.dropout_rate, recipe.weight_decay, recipe.label_smoothing) == (dropout, weight_decay, 0)
    assert (recipe.lr_sched, recipe.initial_lr, recipe.final_lr, recipe.epochs) == ("exp", 1e-2, final_lr, epochs)
    assert (recipe.epsilon, recipe.use_lookahead, recipe.crop_ratio) == (1e-1, False, 1.0)
    assert models.reported()[name].top1 == top1


def test_recipes_are_read_without_keras() -> None:
    done = run_program("recipes_without_keras")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def write_recipe(path: Path, *missing: str) -> Path:
    fields = json.loads(Recipe(model="demo", ema=0.9, epochs=3).to_json())
    path.write_text(json.dumps({name: value for name, value in fields.items() if name not in missing}))
    return path


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        (("ema",), "lacks 1 field; using the default ema=0.0"),
        (("xla",), "lacks 1 field; using the default xla=False"),
        (("lr_sched", "epochs"), "lacks 2 fields; using the defaults epochs=1 lr_sched=linear"),
    ],
)
def test_missing_fields_are_named_with_their_defaults(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, missing: tuple[str, ...], text: str
) -> None:
    path = write_recipe(tmp_path / "recipe.json", *missing)
    with caplog.at_level(logging.WARNING, "kimagenet"):
        recipe = Recipe.load(path)
    assert caplog.messages == [f"{path}: {text}"]
    assert {name: getattr(recipe, name) for name in missing} == {name: getattr(Recipe, name) for name in missing}
    caplog.clear()
    assert Recipe.load(write_recipe(path)).ema == 0.9
    assert not caplog.messages


@pytest.mark.parametrize("key", ["ema", "version", "model"])
def test_a_doubled_key_is_refused(tmp_path: Path, key: str) -> None:
    path = write_recipe(tmp_path / "recipe.json")
    path.write_text(path.read_text()[:-1] + f', "{key}": 1}}')
    with pytest.raises(UserError, match=rf"recipe\.json: not a JSON file \(the key '{key}' is there twice\)"):
        Recipe.load(path)


def test_a_doubled_key_in_the_files_of_runs_and_data_sets_is_refused(tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"version": 1, "short_side": 256, "short_side": null}')
    with pytest.raises(UserError, match=r"run\.json: not a JSON file \(the key 'short_side' is there twice\)"):
        RunDirectory(tmp_path).read_info()
    text = (tiny_dataset / "dataset.json").read_text()
    name = '"quarantine": []'
    (tmp_path / "dataset.json").write_text(text.replace(name, f'"quarantine": [3], {name}', 1))
    with pytest.raises(UserError, match=r"dataset\.json: not a JSON file \(the key 'quarantine' is there twice\)"):
        DatasetInfo.load(tmp_path)


RUN_INFO = {"version": 1, "dataset_dir": "shards", "classes": ["a", "b"], "wnids": [None, None], "short_side": None}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"dataset_dir": ...}, "damaged: dataset_dir is not a str"),
        ({"dataset_dir": 5}, "damaged: dataset_dir is not a str"),
        ({"classes": ...}, "damaged: classes is not a list"),
        ({"version": 2}, "not of version 1"),
    ],
)
def test_a_damaged_run_is_refused_by_name(changes: dict[str, Any], error: str, tmp_path: Path) -> None:
    write_run(tmp_path, changes)
    with pytest.raises(UserError, match=rf"run\.json: {error}"):
        trained.find(tmp_path)


@pytest.mark.parametrize("name", ["wnids", "short_side"])
def test_what_a_run_lacks_is_named(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path, {name: ...})
    assert trained.find(tmp_path).dataset_dir == Path("shards")
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'run.json'}: lacks {name}, so ")
    caplog.clear()
    write_run(tmp_path, {})
    assert trained.find(tmp_path).classes == ("a", "b")
    assert caplog.messages == []


def write_run(folder: Path, changes: dict[str, Any]) -> None:
    """A finished run; fields that change to `...` are missing."""
    info = {key: value for key, value in (RUN_INFO | changes).items() if value is not ...}
    (folder / "run.json").write_text(json.dumps(info))
    write_recipe(folder / "recipe.json")
    (folder / "final.keras").touch()


def resolved(*arguments: str) -> Recipe:
    return resolve(make_parser().parse_args(arguments), Cluster()).recipe


def test_the_folder_of_a_run_is_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"version": 1}')
    expected = Recipe.load(write_recipe(run / "recipe.json"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(run), f"{run}/", "~/run", str(run / "recipe.json")):
        assert resolved(f"--recipe={name}", f"--dataset-dir={tmp_path}") == expected
    assert resolved(f"--recipe={run}", "--epochs=7", f"--dataset-dir={tmp_path}") == expected.replace(epochs=7)
    copy = write_recipe(tmp_path / "first recipe")  # any name
    assert resolved(f"--recipe={copy}", f"--dataset-dir={tmp_path}") == expected


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        resolved(f"--recipe={tmp_path}")
    with pytest.raises(
        UserError, match=r"nowhere: no such recipe; choose a recipe\.json, a run's folder or one of original, demo"
    ):
        resolved("--recipe=nowhere")
    with pytest.raises(UserError, match=r"nowhere\.json: No such file"):
        resolved("--recipe=nowhere.json")


@pytest.mark.parametrize("flags", [["--resume"], ["--force-resume"], []])
def test_a_resumed_run_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, flags: list[str]) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin(Recipe(model="demo"), {"dataset_dir": str(tmp_path), "identity": {}})
    write_recipe(run.recipe, "ema")
    arguments = [*flags, f"--output={run.path}", f"--dataset-dir={tmp_path}"]
    with caplog.at_level(logging.WARNING, "kimagenet"):
        settings = resolve(
            make_parser().parse_args([*arguments, "--recipe=demo"] if not flags else arguments), Cluster()
        )
        if not settings.is_forced:
            check_same(run, Recipe.load(run.recipe, quiet=True), {})
    assert len(caplog.messages) == 1
