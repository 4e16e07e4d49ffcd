"""Printed commands have the form that exists where they are printed, and can be pasted into a shell."""

import argparse
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import google_crc32c
import pytest

from kimagenet import cli, train_settings
from kimagenet.augmentation import changeable
from kimagenet.commands import build_index, check_shards
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from kimagenet.train_flags import _NOT_REPEATED, make_parser, to_resume
from kimagenet.train_report import how_to_evaluate, resume_command
from kimagenet.training.cluster import Cluster
from kimagenet.training.recovery import LIMIT
from pipelines.errors import UserError
from pipelines.shards import remedies
from pipelines.shards.dataset import DatasetInfo
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


def test_below_uv_run_the_path_of_this_python_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`uv run` puts the environment first in PATH, but not in the PATH of the shell to which the command is copied."""
    assert remedies.python() == "python"
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    monkeypatch.chdir(tmp_path)
    assert remedies.module("kimagenet.evaluate") == f"{sys.executable} -m kimagenet.evaluate"
    monkeypatch.chdir(Path(sys.prefix).parent)
    assert remedies.python() == os.path.relpath(sys.executable)


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


def test_another_checksum_is_accepted_with_the_printed_command(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads((dataset / "dataset.json").read_text())
    told["splits"]["train"]["shards"][1]["crc32c"] = "01234567"
    told["splits"]["train"]["quarantine"] = [3]
    (dataset / "dataset.json").write_text(json.dumps(told))
    assert check_shards.main([str(dataset), "--fast", "--workers=1"]) == 1
    assert pasted(capsys.readouterr().out).returncode == 0
    assert check_shards.main([str(dataset), "--workers=1"]) == 0
    info = DatasetInfo.load(dataset)
    assert info.splits["train"].quarantine == [3]
    for part in info.splits.values():
        for shard in part.shards:
            assert shard.crc32c == f"{google_crc32c.value((dataset / shard.file).read_bytes()):08x}"


RUN = ["demo", "--loader=tfdata", "--image-size=32", "--batch-size=12", "--epochs=1", "--workers=1"]


def evaluate_flags(path: Path, skipped: int) -> list[str]:
    """The flags of the evaluate command of a run that skipped this many validation records."""
    run = RunDirectory(path)
    lines = [{"split": "validation", "record": record} for record in range(skipped)] + [{"split": "train"}]
    run.corrupt.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = how_to_evaluate(SimpleNamespace(run=run), True)  # type: ignore[arg-type]
    return shlex.split(text.split("`")[1])[4:]


def test_an_evaluation_may_leave_out_what_the_run_left_out(tmp_path: Path) -> None:
    assert evaluate_flags(tmp_path, 0) == []
    assert evaluate_flags(tmp_path, 1) == ["--on-corrupt=skip"]
    assert evaluate_flags(tmp_path, LIMIT) == ["--on-corrupt=skip"]
    assert evaluate_flags(tmp_path, LIMIT + 1) == ["--on-corrupt=skip", f"--max-corrupt={LIMIT + 1}"]


@pytest.mark.slow
def test_a_run_that_skipped_records_can_be_evaluated(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kimagenet import evaluate, train

    faults.corrupt(ShardSet.open(dataset, "validation"), [3, 30])
    arguments = [*RUN, f"--dataset-dir={dataset}", f"--output={tmp_path / 'my run'}", "--on-corrupt=skip"]
    assert train.main(arguments) == 0
    (done,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("done: "))
    evaluated = pasted(done)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "2 of 37 records are corrupt; the figures leave them out" in evaluated.stderr
    assert "on 35 validation records" in evaluated.stdout
    assert train.main(arguments) == 0  # it is finished
    assert capsys.readouterr().out.splitlines()[-1].split("`")[1] == done.split("`")[1]
    assert evaluate.main([str(tmp_path / "my run"), "--loader=tfdata", "--workers=1"]) == 1
    assert capsys.readouterr().err.endswith("or skip such records with on_corrupt=skip (--on-corrupt)\n")


@pytest.mark.slow
def test_a_run_without_validation_is_not_to_be_evaluated(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kimagenet import train

    for path in dataset.glob("validation-*-of-?????"):
        path.rename(dataset / path.name.replace("validation", "val"))
    assert build_index.main([str(dataset), "--workers=1"]) == 0
    arguments = [*RUN, f"--dataset-dir={dataset}", f"--output={tmp_path / 'run'}"]
    for last in ("done: ", f"{tmp_path / 'run'}: this run is finished"):
        assert train.main(arguments) == 0
        *before, line = capsys.readouterr().out.splitlines()
        assert any(text.startswith(f"note    the split val of {dataset} is not used") for text in before) == bool(
            last == "done: "
        )
        assert line.startswith(last)
        assert "evaluate" not in line


@pytest.mark.slow
def test_a_stopped_run_that_skips_is_resumed_with_the_printed_command(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kimagenet import train
    from kimagenet.runs.reporters import JsonLines
    from tests.test_resume import at_step, send

    faults.corrupt(ShardSet.open(dataset, "validation"), [7])
    arguments = [*RUN, f"--dataset-dir={dataset}", f"--output={tmp_path / 'my run'}", "--on-corrupt=skip"]
    with monkeypatch.context() as patched:
        patched.setattr(JsonLines, "on_train_batch_end", at_step(3, lambda: send(signal.SIGTERM)))
        assert train.main(arguments) == cli.EXIT_RESUME
    resumed = pasted(capsys.readouterr().out.splitlines()[-1])
    assert resumed.returncode == 0, resumed.stderr
    assert "done: " in resumed.stdout


def resumed_with(*arguments: str) -> list[str]:
    """The flags of the command that continues a run, after `--output RUN`."""
    flags = make_parser().parse_args(["demo", "--recipe=demo", "--output=my run", *arguments])
    words = shlex.split(resume_command(train_settings.resolve(flags, Cluster())))
    assert words[words.index("--resume") : words.index("my run") + 1] == ["--resume", "--output", "my run"]
    return words[words.index("my run") + 1 :]


@pytest.mark.parametrize(
    "repeated",
    [
        ["--callback=my_callbacks:Count", "--callback=my callbacks:Other", "--validate-every=2"],
        ["--log-steps=7", "--checkpoint-steps=5", "--keep-checkpoints=9", "--per-class"],
        ["--no-per-class", "--data-device=cpu", "--data-dtype=float16", "--workers=1", "--prefetch=3"],
        ["--on-corrupt=skip", "--max-corrupt=0", "--data-timeout=9.5", "--strict-loader"],
        ["--hw-decoder-load=0.5", "--no-fancy-upsampling", "--preallocate-percentile=50.0", "--reader-queue=9"],
    ],
)
def test_a_run_is_continued_with_the_flags_that_it_does_not_keep(repeated: list[str]) -> None:
    assert sorted(resumed_with(*repeated)) == sorted(repeated)
    make_parser().parse_args(["--resume", "--output=my run", *resumed_with(*repeated)])


def test_flags_that_the_run_keeps_or_that_are_the_default_are_not_repeated() -> None:
    kept = ["--epochs=3", "--nesterov", "--rotation=9", "--crop-area", "0.3", "1", "--loader=tfdata"]
    assert resumed_with(*kept, "--dataset-dir=shards", "--log-steps=50", "--fancy-upsampling") == []


def test_every_flag_of_a_training_is_kept_or_repeated() -> None:
    """A flag that is added later is repeated, unless it is a field of the recipe."""
    parser = make_parser()
    kept = {field.name for field in dataclasses.fields(Recipe)} | {*changeable()} | {*_NOT_REPEATED}
    rest = {action.dest for action in parser._actions} - kept - {"help", "list_recipes"}
    flags = argparse.Namespace(**dict.fromkeys(rest, "x"))
    assert {word.partition("=")[0] for word in to_resume(flags)} == {f"--{name.replace('_', '-')}" for name in rest}
