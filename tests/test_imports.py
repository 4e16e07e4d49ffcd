"""Imports go one way, as docs/architecture.md says; fast commands import no TensorFlow; nothing is too long."""

from pathlib import Path

import pytest

from tests.helpers.programs import ROOT, run_program
from tools.structure import MEASURED, PACKAGES, TooLong, circles, files, imports_of, reached, room_of, too_long, upward

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


def test_no_file_or_function_is_too_long() -> None:
    assert too_long() == []


def test_only_tests_import_bench_and_tests() -> None:
    wrong = [
        f"{name} imports {module}"
        for name in files()
        for module, _, _ in imports_of(name)
        if module.startswith("tests") or (module.startswith("bench") and not name.startswith("bench"))
    ]
    assert wrong == []


def test_only_tools_import_tools() -> None:
    packages = [name for name in PACKAGES if name != "tools"]
    names = [name for name in files() if name.split(".")[0] in packages]
    assert [name for name in names for module, _, _ in imports_of(name) if module.startswith("tools")] == []


def test_models_and_optimizers_know_nothing_of_the_data() -> None:
    names = [name for name in files() if name.startswith(("kimagenet.models", "kimagenet.optim", "kimagenet.schedule"))]
    found = {room_of(module) for name in names for module, _, _ in imports_of(name) if module.startswith("pipelines")}
    assert found <= {"pipelines.errors", "pipelines.ranges", "pipelines.system"}


@pytest.mark.parametrize("name", LIGHT)
def test_fast_modules_import_no_tensorflow(name: str) -> None:
    found = reached(name, late=False)
    assert {module: by for module, by in found.items() if module.split(".")[0] in HEAVY} == {}


@pytest.mark.slow
def test_the_public_names_can_be_imported() -> None:
    done = run_program("public_names", env={"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.returncode == 0, done.stderr


def test_a_circle_of_imports_for_types_is_found(tmp_path: Path) -> None:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "kimagenet" / "recipe.py").write_text("from kimagenet.schedule import Schedule\n")
    (tmp_path / "kimagenet" / "schedule.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from kimagenet.recipe import Recipe\n"
    )
    assert circles(tmp_path) == {frozenset(("kimagenet.recipe", "kimagenet.schedule"))}
    assert upward(tmp_path) == ["kimagenet.schedule → kimagenet.recipe"]


def test_long_files_and_functions_are_found(tmp_path: Path) -> None:
    for folder in MEASURED:
        (tmp_path / folder).mkdir()
    table = "@cases([\n" + "    0,\n" * 80 + "])\n"  # a decorator does not count
    fits = "def fits(x):\n" + "    x = 0\n" * 59
    (tmp_path / "bench" / "fits.py").write_text("#\n" * 340 + fits)
    (tmp_path / "bench" / "long.py").write_text("#\n" * 401)
    (tmp_path / "tests" / "test_long.py").write_text(
        table + fits + "class A:\n    async def long(self):\n" + "        x = 0\n" * 60
    )
    assert too_long(tmp_path) == [
        TooLong("bench/long.py", 401, 400),
        TooLong("tests/test_long.py:144 long", 61, 60),
    ]
