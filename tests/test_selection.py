"""The fast subset imports no TensorFlow, and worker processes start where they save time."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.programs import ROOT
from tests.helpers.selection import FAST_MODULES, TESTS, default_workers

GIB = 1 << 30


@pytest.mark.slow
def test_collecting_the_fast_tests_imports_no_tensorflow() -> None:
    """conftest.py makes such an import an error, also while a fast test runs."""
    command = [sys.executable, "-m", "pytest", "-m", "fast", "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    modules = {Path(line.split("::")[0]).stem for line in done.stdout.splitlines() if "::" in line}
    assert modules == {name for name in FAST_MODULES if (TESTS / f"{name}.py").exists()}
    (count,) = re.findall(r"^(\d+)(?:/\d+)? tests collected", done.stdout, re.MULTILINE)
    assert int(count) > 500


@pytest.mark.parametrize("arguments", [[], [str(TESTS)], [str(TESTS / "helpers"), str(TESTS)]])
def test_whole_folders_get_a_worker_for_each_core_and_one_more(arguments: list[str]) -> None:
    assert default_workers(arguments, "", cores=2, memory=24 * GIB) == 3
    assert default_workers(arguments, "", cores=15, memory=64 * GIB) == 16


@pytest.mark.parametrize(
    ("arguments", "keyword"),
    [
        ([str(TESTS / "test_plan.py")], ""),
        ([f"{TESTS / 'test_plan.py'}::test_ranks"], ""),
        ([], "ranks"),
        ([str(TESTS), str(ROOT / "bench")], ""),  # pytest-benchmark measures nothing in workers
        ([str(ROOT)], ""),
    ],
)
def test_a_few_tests_and_benchmarks_run_in_one_process(arguments: list[str], keyword: str) -> None:
    assert default_workers(arguments, keyword, cores=8, memory=64 * GIB) == 0


def test_workers_need_memory_and_a_second_core() -> None:
    assert default_workers([], "", cores=1, memory=64 * GIB) == 0
    assert default_workers([], "", cores=8, memory=7 * GIB) == 0
    assert default_workers([], "", cores=8, memory=16 * GIB) == 4
