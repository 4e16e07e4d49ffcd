"""The README's script runs as it stands, and the commands that it gives exist."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.loaders import dali

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("loader", ["dali", "tfdata"])
def test_the_users_script(tiny_dataset: Path, tmp_path: Path, loader: str) -> None:
    if loader == "dali" and (problem := dali.unavailable("cpu")):
        pytest.skip(f"no DALI: {problem}")
    (script,) = (block for block in blocks("python") if "open_loader" in block)
    shutil.copytree(tiny_dataset, tmp_path / "tfrecords")
    code = script.replace('"dali"', f'"{loader}"')
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONPATH": str(README.parent), "TF_CPP_MIN_LOG_LEVEL": "3", "HOME": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("accuracy") >= 3, result.stdout  # two epochs of training and the evaluation
    for steps in ("6/6", "3/3"):
        assert steps in result.stdout


def test_commands_are_there() -> None:
    modules = set(re.findall(r"python -m ((?:kimagenet|tools|bench)[.\w]*)", README.read_text(encoding="utf-8")))
    assert {"kimagenet.train", "tools.build_shards"} <= modules
    for module in modules:
        path = README.parent / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
