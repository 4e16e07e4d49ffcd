"""Flags without effect are named before the work begins, with what they need."""

import dataclasses
from pathlib import Path

import pytest

from kimagenet import evaluate, idle_flags, train
from kimagenet.recipe import Recipe
from kimagenet.train_flags import make_parser
from kimagenet.training.cluster import Cluster
from pipelines import UserError

ALL_NAMES = {name for need in idle_flags.NEEDS for name in need.flags}


def named(*arguments: str) -> list[str]:
    """The flags that are named for a command line."""
    parsed = make_parser().parse_args(["demo", "--recipe=demo", *arguments])
    lines = idle_flags.lines(parsed, train.resolve(parsed, Cluster()))
    return [line.split()[1] for line in lines]


@pytest.mark.parametrize(
    ("flag", "idle", "active"),
    [
        ("--step-epochs=3", ["--lr-sched=linear"], ["--lr-sched=step"]),
        ("--step-factor=0.5", ["--lr-sched=cosine"], ["--lr-sched=step"]),
        ("--final-lr=1e-5", ["--lr-sched=constant"], ["--lr-sched=cosine", "--epochs=1"]),
        ("--final-lr=1e-5", ["--lr-sched=linear", "--epochs=1"], ["--lr-sched=linear", "--epochs=2"]),
        ("--sync-period=9", ["--no-use-lookahead"], ["--use-lookahead"]),
        ("--slow-step-size=0.4", ["--no-use-lookahead"], ["--use-lookahead"]),
        ("--momentum=0.3", ["--optimizer=adam"], ["--optimizer=sgd"]),
        ("--momentum=0.3", ["--optimizer=rmsprop"], ["--optimizer=my_code:optimizer"]),
        ("--nesterov", ["--optimizer=lamb"], ["--optimizer=sgd", "--momentum=0.9"]),
        ("--nesterov", ["--optimizer=sgd", "--momentum=0"], ["--optimizer=my_code:optimizer"]),
        ("--no-nesterov", ["--optimizer=adam"], ["--optimizer=sgd", "--momentum=0"]),
        ("--epsilon=0.01", ["--optimizer=sgd"], ["--optimizer=adam"]),
        ("--epsilon=0.01", ["--optimizer=lion"], ["--optimizer=adadelta"]),
        ("--max-corrupt=5", [], ["--on-corrupt=skip"]),
        ("--max-corrupt=100", ["--on-corrupt=stop"], ["--on-corrupt=skip"]),
        ("--data-device=gpu", ["--loader=tfdata"], ["--loader=dali"]),
        ("--strict-loader", ["--loader=tfdata"], []),
        ("--reader-queue=4", ["--loader=tfdata"], ["--loader=dali"]),
        ("--hw-decoder-load=0.5", ["--loader=dali", "--data-device=cpu"], ["--loader=dali"]),
        ("--no-fancy-upsampling", ["--loader=tfdata"], ["--data-device=gpu"]),
        ("--preallocate-percentile=50", ["--loader=tfdata"], ["--loader=dali"]),
    ],
)
def test_a_flag_is_named_if_and_only_if_it_has_no_effect(flag: str, idle: list[str], active: list[str]) -> None:
    name = flag.split("=")[0]
    assert named(flag, *idle).count(name) == 1
    assert name not in named(flag, *active)


def test_every_flag_of_the_table_exists() -> None:
    known = {action.dest for action in make_parser()._actions}
    assert known >= ALL_NAMES
    assert named() == []


def test_what_a_recipe_says_is_not_named(tmp_path: Path) -> None:
    recipe = dataclasses.replace(Recipe(), step_epochs=3, sync_period=9, momentum=0.3)
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert named(f"--recipe={tmp_path / 'recipe.json'}") == []


def test_an_evaluation_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(*_: object) -> None:
        raise UserError("measured")

    monkeypatch.setattr(evaluate, "_measure", end)
    (tmp_path / "model.keras").touch()
    arguments = [str(tmp_path / "model.keras"), f"--dataset-dir={tmp_path}"]
    idle = ["--max-corrupt=100", "--loader=tfdata", "--data-device=cpu", "--checkpoint=best"]
    assert evaluate.main([*arguments, *idle]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "--max-corrupt has no effect: it needs --on-corrupt=skip",
        "--data-device has no effect: it needs --loader=dali",
        "--checkpoint has no effect: it needs a run directory",
        "error: measured",
    ]
    assert evaluate.main([*arguments, "--max-corrupt=5", "--on-corrupt=skip", "--data-device=cpu"]) == 2
    assert capsys.readouterr().err == "error: measured\n"


def test_a_training_says_it_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(train, "_train", lambda settings, say: 0)
    flags = ["demo", "--recipe=demo", "--optimizer=adam", "--momentum=0.3", "--max-corrupt=5"]
    assert train.main(flags) == 0
    assert capsys.readouterr().out.splitlines() == [
        "note    --momentum has no effect: it needs --optimizer=sgd",
        "note    --max-corrupt has no effect: it needs --on-corrupt=skip",
    ]
