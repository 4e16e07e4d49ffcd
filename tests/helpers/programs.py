"""Runs the programs of tests/programs, each in a new process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "programs"


def command(name: str, *arguments: object) -> list[str]:
    """The command line that runs a program. It works in every folder."""
    return [sys.executable, str(PROGRAMS / f"{name}.py"), *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with the checkout on Python's path."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | changes


def run_program(
    name: str,
    *arguments: object,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Waits for a program's end.

    Args:
        name: the file in tests/programs, without its suffix.
        arguments: its command line; each is converted to a string.
        cwd: its working directory.
        env: its whole environment; the default is `environment()`.
        timeout: seconds until it is killed and `subprocess.TimeoutExpired` is raised.

    Returns:
        Its exit code and the text of stdout and stderr.
    """
    env = environment() if env is None else env
    return subprocess.run(
        command(name, *arguments), cwd=cwd, env=env, timeout=timeout, capture_output=True, text=True, check=False
    )
