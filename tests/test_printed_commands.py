"""Printed commands have the form that exists where they are printed, and can be pasted into a shell."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kimagenet.commands import build_index, check_shards
from pipelines.errors import UserError
from pipelines.shards import remedies
from pipelines.shards.index import index_path
from pipelines.shards.shard_set import ShardSet
from tests.helpers import faults

ROOT = Path(__file__).parents[1]


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    return faults.copy_dataset(tiny_dataset, tmp_path / "my shards")


def pasted(text: str) -> subprocess.CompletedProcess[str]:
    """Runs the first command in a text, in the clone."""
    return subprocess.run(text.split("`")[1], shell=True, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_clone_prints_its_tools() -> None:
    assert remedies.program("build_index") == "python -m tools.build_index"
    assert remedies.command("check_shards", Path("my shards"), "--quarantine") == (
        "python -m tools.check_shards 'my shards' --quarantine"
    )


def test_a_wheel_prints_its_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remedies, "_ROOT", tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    assert remedies.program("build_index") == "kimagenet-build-index"
    assert remedies.build_index(Path("a b")) == "`bin/python -m kimagenet.commands.build_index 'a b'`"
    script = tmp_path / "bin" / "kimagenet-build-index"
    script.parent.mkdir()
    script.touch(0o755)
    assert remedies.build_index(Path("a b")) == "`bin/kimagenet-build-index 'a b'`"
    monkeypatch.setenv("PATH", str(script.parent))
    assert remedies.build_index(Path("a b")) == "`kimagenet-build-index 'a b'`"


def test_another_python_in_path_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").touch(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join((str(tmp_path), os.environ["PATH"])))
    monkeypatch.chdir(tmp_path)
    assert remedies.module("kimagenet.train") == f"{sys.executable} -m kimagenet.train"


@pytest.mark.parametrize("name", ["a b", "it's", "$HOME", "-shards", "a`b", "a\tb;c"])
def test_paths_reach_the_command_unchanged(name: str) -> None:
    (word,) = shlex.split(remedies.quoted(Path(name)))
    assert Path(word) == Path(name)
    assert not word.startswith("-")


def test_a_missing_index_can_be_made_with_the_printed_command(dataset: Path) -> None:
    index_path(ShardSet.open(dataset, "train").paths[0]).unlink()
    with pytest.raises(UserError) as caught:
        ShardSet.open(dataset, "train")
    assert pasted(str(caught.value)).returncode == 0
    ShardSet.open(dataset, "train")


def test_the_faults_of_check_shards_have_commands_that_repair_them(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "train-sizes.npy").unlink()
    assert check_shards.main([str(dataset), "--fast", "--workers=1"]) == 1
    assert pasted(capsys.readouterr().out).returncode == 0
    assert check_shards.main([str(dataset), "--fast", "--workers=1"]) == 0


def test_a_damaged_record_is_left_out_with_the_printed_command(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults.break_example(ShardSet.open(dataset, "train"), 0)
    assert build_index.main([str(dataset), "--workers=1"]) == 2
    assert "quarantined records: 1 of train" in pasted(capsys.readouterr().err).stdout
    assert build_index.main([str(dataset), "--workers=1"]) == 0
