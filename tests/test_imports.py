"""Imports go one way, as docs/architecture.md says, and what has to answer at once imports no TensorFlow."""

import pytest

from tests.helpers.programs import ROOT, run_program
from tools.structure import PACKAGES, circles, files, imports_of, reached, room_of, upward

HEAVY = {"tensorflow", "keras", "nvidia"}
COMMANDS = [f"kimagenet.{name}" for name in ("train", "evaluate", "predict", "export", "doctor", "models.__main__")]
LIGHT = [
    "pipelines",
    "pipelines.loaders.dali.graph",
    "kimagenet",
    "kimagenet.recipe",
    "kimagenet.schedule",
    *COMMANDS,
    *(name for name in files() if name.startswith("tools.")),
]


def test_every_import_points_to_a_lower_room() -> None:
    assert upward() == []


def test_no_two_files_reach_each_other() -> None:
    assert circles() == set()


def test_only_tests_import_bench_and_tests() -> None:
    wrong = [
        f"{name} imports {module}"
        for name in files()
        for module, _, _ in imports_of(name)
        if module.startswith("tests") or (module.startswith("bench") and not name.startswith("bench"))
    ]
    assert wrong == []


def test_tools_are_imported_by_tools_alone() -> None:
    packages = [name for name in PACKAGES if name != "tools"]
    names = [name for name in files() if name.split(".")[0] in packages]
    assert [name for name in names for module, _, _ in imports_of(name) if module.startswith("tools")] == []


def test_models_and_optimizers_know_nothing_of_the_data() -> None:
    names = [name for name in files() if name.startswith(("kimagenet.models", "kimagenet.optim", "kimagenet.schedule"))]
    found = {room_of(module) for name in names for module, _, _ in imports_of(name) if module.startswith("pipelines")}
    assert found <= {"pipelines.errors", "pipelines.system"}


@pytest.mark.parametrize("name", LIGHT)
def test_what_answers_at_once_imports_no_tensorflow(name: str) -> None:
    found = reached(name, late=False)
    assert {module: by for module, by in found.items() if module.split(".")[0] in HEAVY} == {}


@pytest.mark.slow
def test_the_public_names_are_there() -> None:
    done = run_program("public_names", env={"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.returncode == 0, done.stderr


def test_a_circle_for_types_alone_is_seen(tmp_path) -> None:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "kimagenet" / "recipe.py").write_text("from kimagenet.schedule import Schedule\n")
    (tmp_path / "kimagenet" / "schedule.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from kimagenet.recipe import Recipe\n"
    )
    assert circles(tmp_path) == {frozenset(("kimagenet.recipe", "kimagenet.schedule"))}
    assert upward(tmp_path) == ["kimagenet.schedule → kimagenet.recipe"]
