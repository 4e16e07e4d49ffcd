"""Schedules against hand-computed values and the original's formulas."""

import math
from pathlib import Path

import pytest
from PIL import Image

from kimagenet import train
from kimagenet.recipe import Recipe
from kimagenet.schedule import NAMES, Schedule, linear_scaled
from pipelines.errors import UserError
from tests.helpers.programs import run_program


def original(name: str, l0: float, lf: float, epochs: int, epoch: int) -> float:
    """The original's rate of an epoch, in its own form."""
    if epochs == 1:
        return l0
    if name == "linear":
        return lf + (l0 - lf) * (epochs - 1 - epoch) / (epochs - 1)
    return l0 * (lf / l0) ** (epoch / (epochs - 1))


@pytest.mark.parametrize("name", ["linear", "exp"])
@pytest.mark.parametrize("epochs", [1, 2, 7, 80])
def test_per_epoch_schedules_are_the_originals(name: str, epochs: int) -> None:
    schedule = Schedule(name, 1e-2, 1e-5, epochs)
    for epoch in range(epochs):
        expected = original(name, 1e-2, 1e-5, epochs, epoch)
        for step in (0, 1, 499, 999):
            assert schedule.at(epoch + step / 1000) == pytest.approx(expected, rel=1e-12)


def test_hand_computed_points() -> None:
    assert [Schedule("linear", 3.0, 1.0, 3).at(t) for t in (0, 0.9, 1, 2, 2.99, 3)] == [3, 3, 2, 1, 1, 1]
    assert [Schedule("exp", 4.0, 1.0, 3).at(t) for t in (0, 1.5, 2)] == pytest.approx([4, 2, 1])
    assert [Schedule("cosine", 3.0, 1.0, 2).at(t) for t in (0, 0.5, 1, 2)] == pytest.approx(
        [3, 2 + math.sqrt(0.5), 2, 1]
    )
    step = Schedule("step", 1.0, 0.0, 90)
    assert [step.at(t) for t in (0, 29.99, 30, 60, 89.5)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    assert Schedule("step", 1.0, 0.05, 90).at(60) == 0.05
    assert {Schedule("constant", 0.3, 0.1, 4).at(t) for t in (0, 1.7, 3.9)} == {0.3}


@pytest.mark.parametrize("name", NAMES)
def test_warmup_rises_step_by_step_and_meets_the_schedule(name: str) -> None:
    plain, warm = (Schedule(name, 0.4, 0.1, 10, warmup_epochs=w) for w in (0.0, 2.5))
    target = plain.at(2.5) if name != "cosine" else 0.4  # cosine falls over what is left after the warm-up
    for t in (0.0, 0.001, 1.0, 2.0, 2.499):
        assert warm.at(t) == pytest.approx(target * t / 2.5, rel=1e-12)
    assert warm.at(2.5) == pytest.approx(target)
    for t in (3.0, 6.2, 9.99):
        assert name == "cosine" or warm.at(t) == plain.at(t)
    assert warm.at(10.0) == pytest.approx(plain.at(10.0))


@pytest.mark.parametrize("name", NAMES)
def test_rates_stay_within_their_bounds(name: str) -> None:
    schedule = Schedule(name, 0.4, 0.1, 5)
    rates = [schedule.at(i / 100) for i in range(501)]
    assert all(0.1 - 1e-12 <= rate <= 0.4 + 1e-12 for rate in rates)
    assert rates == sorted(rates, reverse=True)
    assert schedule.at(7.0) == schedule.at(5.0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "polynomial"}, "one of"),
        ({"initial_lr": 0.0}, "initial_lr"),
        ({"initial_lr": math.nan}, "initial_lr"),
        ({"final_lr": -1.0}, "final_lr"),
        ({"name": "exp", "final_lr": 0.0}, "exp"),
        ({"epochs": 0}, "epochs"),
        ({"warmup_epochs": 4.0}, "warmup_epochs"),
        ({"step_epochs": 0}, "step_epochs"),
        ({"step_factor": 1.0}, "step_factor"),
    ],
)
def test_bad_fields_are_refused(change: dict, word: str) -> None:
    fields = {"name": "linear", "initial_lr": 0.1, "final_lr": 0.01, "epochs": 4} | change
    with pytest.raises(UserError, match=word):
        Schedule(**fields)


def test_linear_scaling_rule() -> None:
    assert linear_scaled(0.1, 1024) == pytest.approx(0.4)
    assert linear_scaled(0.1, 64, reference_batch_size=128) == pytest.approx(0.05)


def test_schedules_do_not_import_tensorflow() -> None:
    assert run_program("without_tensorflow", "kimagenet.schedule").returncode == 0


def test_a_recipe_names_its_schedule() -> None:
    recipe = Recipe(lr_sched="exp", initial_lr=1e-2, final_lr=1e-5, epochs=80, warmup_epochs=5, batch_size=32)
    assert recipe.schedule() == Schedule("exp", 1e-2, 1e-5, 80, 5.0)
    scaled = recipe.replace(iter_size=16, lr_reference_batch=256).schedule()
    assert (scaled.initial_lr, scaled.final_lr) == pytest.approx((2e-2, 2e-5))


def test_plot_schedule_plots_the_recipes_with_its_flags(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    pictures = [tmp_path / f"{name}.png" for name in ("first", "again", "other")]
    for picture, flags in zip(pictures, ([], [], ["--warmup-epochs=9"]), strict=True):
        assert train.main(["resnet50", "--recipe=resnet50_modern", f"--plot-schedule={picture}", *flags]) == 0
    assert f"written: {pictures[2]}" in capsys.readouterr().out
    first, again, other = (Image.open(picture).tobytes() for picture in pictures)
    assert first == again != other
    assert {path.suffix for path in tmp_path.iterdir()} == {".png"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"weight_decay": 1e-5, "decoupled_weight_decay": 0.05}, "exclude"),
        ({"slow_step_size": 1.5}, "slow_step_size"),
        ({"sync_period": 0}, "sync_period"),
        ({"clip_global_norm": -1.0}, "clip_global_norm"),
        ({"ema": 1.0}, "ema"),
        ({"warmup_epochs": 1.0, "epochs": 1}, "warmup_epochs"),
        ({"optimizer": "frobnicate"}, "one of"),
    ],
)
def test_a_recipe_refuses_values_that_contradict_each_other(change: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        Recipe(**change)
