"""The models' recipes and reported accuracies. They are read without Keras."""

from importlib import import_module

import pytest

from kimagenet import models
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
