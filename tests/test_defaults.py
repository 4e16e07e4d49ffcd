"""The training choices without a recipe: they fit the data, and what the user chose stays."""

from dataclasses import fields
from typing import Any

import pytest

from kimagenet import defaults
from kimagenet.recipe import OPTIMIZERS, Recipe
from kimagenet.schedule import NAMES as SCHEDULES
from pipelines import UserError

CHOSEN = (
    *("batch_size", "iter_size", "epochs", "optimizer", "decoupled_weight_decay", "weight_decay", "epsilon"),
    *("initial_lr", "lr_sched", "final_lr", "warmup_epochs", "bn_momentum"),
)


def chosen(records: int, size: int = 96, is_trained: bool = False, **given: Any) -> dict[str, Any]:
    choices = defaults.choose(given, records, size, is_trained=is_trained)
    assert all(choice.reason for choice in choices)
    found = [name for choice in choices for name in choice.values]
    assert len(set(found)) == len(found)
    assert not set(found) & set(given)
    return {name: value for choice in choices for name, value in choice.values.items()}


@pytest.mark.parametrize(
    ("records", "size", "given", "expected"),
    [
        # batch: 1,000 updates in 30 epochs, 16 to 128 images; epochs: 3,000 updates, 20 to 100 epochs
        (200, 96, {}, {"batch_size": 16, "epochs": 100, "bn_momentum": 0.8, "initial_lr": 5e-4}),
        (2_000, 96, {}, {"batch_size": 32, "epochs": 49, "bn_momentum": 0.919, "initial_lr": 7.1e-4}),
        (9_469, 96, {}, {"batch_size": 128, "epochs": 42, "bn_momentum": 0.932, "initial_lr": 1.4e-3}),
        (9_469, 224, {}, {"batch_size": 64, "epochs": 21, "bn_momentum": 0.966, "initial_lr": 1e-3}),
        (9_469, 380, {}, {"batch_size": 16}),
        (100_000, 224, {}, {"batch_size": 64, "epochs": 20, "bn_momentum": 0.99}),
        (10, 96, {}, {"batch_size": 10, "bn_momentum": 0.8}),
        (1_544, 64, {"epochs": 2}, {"batch_size": 16, "warmup_epochs": 0.2}),
        (2_000, 96, {"batch_size": 64}, {"epochs": 97, "initial_lr": 1e-3}),
        (2_000, 96, {"batch_size": 16, "iter_size": 4}, {"epochs": 97, "initial_lr": 1e-3, "bn_momentum": 0.96}),
        (2_000, 96, {"optimizer": "sgd"}, {"initial_lr": 0.013}),
        (2_000, 96, {"optimizer": "sgd", "lr_reference_batch": 256}, {"initial_lr": 0.1}),
        (2_000, 96, {"weight_decay": 1e-4}, {"optimizer": "adam"}),
    ],
)
def test_choices_for_new_weights(records: int, size: int, given: dict[str, Any], expected: dict[str, Any]) -> None:
    found = chosen(records, size, **given)
    assert {name: found[name] for name in expected} == expected
    assert found.get("iter_size", 4) == (4 if "iter_size" in given else 1)


def test_trained_weights_get_fewer_epochs_and_a_lower_rate() -> None:
    new, trained = chosen(2_000), chosen(2_000, is_trained=True)
    assert trained["epochs"] == 17
    assert trained["initial_lr"] == pytest.approx(0.3 * new["initial_lr"], rel=0.02)
    assert trained["bn_momentum"] == new["bn_momentum"]


def test_everything_is_chosen_and_everything_can_be_given() -> None:
    assert set(chosen(1_000)) == set(CHOSEN)
    own = {name: getattr(Recipe, name) for name in CHOSEN}
    assert chosen(1_000, **own) == {}
    decoupled = {"weight_decay": 0.0, "decoupled_weight_decay": 0.1}  # as `resolve_recipe` gives them
    assert chosen(1_000, **decoupled)["optimizer"] == "adamw"


@pytest.mark.parametrize("records", [1, 17, 101, 1_208, 40_000, 499_999])
@pytest.mark.parametrize("epochs", [None, 1, 2, 30, 500])
@pytest.mark.parametrize("is_trained", [False, True])
def test_a_run_learns_and_its_statistics_follow(records: int, epochs: int | None, is_trained: bool) -> None:
    given = {} if epochs is None else {"epochs": epochs}
    recipe = Recipe(**given, **chosen(records, 96, is_trained, **given))
    steps = records // recipe.batch_size
    assert steps >= 1
    left = recipe.bn_momentum ** (steps * recipe.epochs)
    assert left < 0.02 or steps * recipe.epochs < 20
    assert recipe.bn_momentum ** (3 * steps) < 0.05 or steps < 5
    if records >= 200 and recipe.epochs >= 30:
        assert defaults.too_few_updates(steps, recipe.epochs, recipe.iter_size) == ""
    assert not defaults.slow_statistics(recipe.bn_momentum, steps * recipe.epochs) or steps * recipe.epochs < 20


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "my_module:make"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_optimizer_and_schedule_gives_a_recipe(optimizer: str, schedule: str) -> None:
    given = {"optimizer": optimizer, "lr_sched": schedule}
    recipe = Recipe(**given, **chosen(2_000, **given))
    rates = [recipe.schedule().at(recipe.epochs * share) for share in (0.2, 0.999)]
    assert rates[0] > 0
    assert rates[1] > 0 or schedule == "step"
    assert (rates[1] < rates[0]) == (schedule != "constant")


def test_wrong_values_are_left_to_the_recipe() -> None:
    for given in ({"epochs": 0}, {"batch_size": 0}, {"initial_lr": 0.0}, {"iter_size": -1}, {"optimizer": "sgdd"}):
        with pytest.raises(UserError, match=next(iter(given))):
            Recipe(**given, **chosen(100, **given))


def test_each_choice_has_a_line() -> None:
    choices = defaults.choose({"epochs": 30}, 1_208, 96, is_trained=False)
    lines = defaults.lines(choices)
    assert lines[0] == "  batch_size=32                               so few that the run has many updates"
    assert len(lines) == len(choices)
    assert {line.split("=")[0].strip() for line in lines} <= {field.name for field in fields(Recipe)}
    assert defaults.lines([]) == []


def test_too_few_updates_are_reported() -> None:
    assert defaults.too_few_updates(48, 2, 1) == ""
    assert "only 24 updates in the whole run" in defaults.too_few_updates(48, 2, 4)
    assert "only 1 update in" in defaults.too_few_updates(48, 2, 96)
    with pytest.raises(UserError, match="an update takes 97 steps, but the whole run has 96: nothing would be trained"):
        defaults.too_few_updates(48, 2, 97)


def test_statistics_that_cannot_follow_are_reported() -> None:
    assert defaults.slow_statistics(0.9, 120) == defaults.slow_statistics(0.0, 1) == ""
    assert "momentum 0.99 is too slow for 120 steps: 30% of the initial" in defaults.slow_statistics(0.99, 120)
