"""The scripts of README and FAQ run as written."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.loaders import dali
from tests.helpers.documents import ROOT, blocks

README = ROOT / "README.md"
FAQ = ROOT / "docs" / "faq.md"


@pytest.mark.parametrize("loader", ["dali", "tfdata"])
def test_the_users_script(tiny_dataset: Path, tmp_path: Path, loader: str) -> None:
    if loader == "dali" and (problem := dali.unavailable("cpu")):
        pytest.skip(f"no DALI: {problem}")
    (script,) = (block.code for block in blocks(README) if block.language == "python")
    shutil.copytree(tiny_dataset, tmp_path / "tfrecords")
    (validated,) = (block.code for block in blocks(FAQ) if block.mark == "tested: tests/test_readme.py")
    code = (script + validated).replace('"dali"', f'"{loader}"')
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONPATH": str(README.parent), "TF_CPP_MIN_LOG_LEVEL": "3", "HOME": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("accuracy") >= 6, result.stdout  # five epochs of training and the evaluation
    assert result.stdout.count("val_accuracy") == 5, result.stdout
    assert (tmp_path / "last.keras").is_file()
    for steps in ("6/6", "3/3"):
        assert steps in result.stdout
