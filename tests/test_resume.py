"""A run that was stopped or killed is resumed exactly: the same weights, bit for bit, and the same log."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from kimagenet import cli, train
from kimagenet.runs.checkpoint import Checkpoint
from kimagenet.runs.directory import RunDirectory
from kimagenet.runs.reporters import JsonLines
from kimagenet.training.loop import Loop
from pipelines import loaders
from tests.helpers.data import TRAIN_RECORDS
from tests.helpers.faults import full_disk
from tests.helpers.kill_proof import kill_at, noting_batches, read_notes
from tests.helpers.runs import final_weights, read_events, read_log

ROOT = Path(__file__).parents[1]
LOADERS = [name for name in loaders.names() if name != "synthetic"]
BATCH_SIZE = 12
STEPS_PER_EPOCH = TRAIN_RECORDS // BATCH_SIZE
EPOCHS = 3
FLAGS = ["demo", "--image-size=32", f"--batch-size={BATCH_SIZE}", f"--epochs={EPOCHS}", "--workers=1"]
FLAGS += ["--use-lookahead", "--iter-size=3", "--ema=0.9", "--dropout-rate=0.2", "--mixup=0.2", "--checkpoint-steps=3"]
FLAGS += ["--bn-momentum=0.5", "--class-weights=balanced", "--sampling=balanced"]
FLAGS += ["--augment=rand:2,9", "--repeats=2"]


def command(dataset: Path, output: Path, loader: str, *flags: str) -> list[str]:
    return [*FLAGS, f"--loader={loader}", f"--dataset-dir={dataset}", f"--output={output}", *flags]


def assert_same(run: RunDirectory, whole: RunDirectory) -> None:
    """Checks that weights are equal, bit for bit, and logs too, except for times: no line is missing or repeated."""
    for a, b in zip(final_weights(whole), final_weights(run), strict=True):
        np.testing.assert_array_equal(a, b)
    assert epoch_lines(run) == epoch_lines(whole)
    for event in ("step", "epoch"):
        assert [line["global_step"] for line in read_log(run, event)] == [
            line["global_step"] for line in read_log(whole, event)
        ]
    assert summary(run) == summary(whole)
    # The first log step after a resume has the mean of the steps since then: only the places of the points are equal.
    assert [point[:2] for point in points(run, "train")] == [point[:2] for point in points(whole, "train")]
    assert points(run, "validation") == points(whole, "validation")


def epoch_lines(run: RunDirectory) -> list[dict]:
    """The log's lines of epochs, without times."""
    clock = ("time", "images_per_second", "data_wait", "storage_wait")
    return [{k: v for k, v in line.items() if k not in clock} for line in read_log(run, "epoch")]


def summary(run: RunDirectory) -> list[list[str]]:
    """The lines of summary.csv without the two columns of speed."""
    return [line.split(",")[:-2] for line in run.summary.read_text().splitlines()]


def points(run: RunDirectory, name: str) -> list[tuple]:
    """(step, tag, value) of TensorBoard's points, without those of speed, which are missing during the warm-up."""
    events = read_events(run.tensorboard / name)
    found = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    return [point for point in found if not point[1].startswith("speed/")]


@pytest.fixture(scope="module", params=LOADERS)
def whole_run(request, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunDirectory]:
    output = tmp_path_factory.mktemp("whole") / request.param
    with noting_batches(output.with_suffix(".jsonl")):
        assert train.main(command(tiny_dataset, output, request.param)) == 0
    return request.param, RunDirectory(output)


def send(signal_number: int) -> None:
    os.kill(os.getpid(), signal_number)


def at_step(step: int, act: Callable[[], None]) -> Callable:
    original = JsonLines.on_train_batch_end
    done = []

    def on_train_batch_end(self, batch, logs=None):
        original(self, batch, logs)
        if self.loop.global_step == step and not done:
            done.append(step)
            act()

    return on_train_batch_end


@pytest.mark.parametrize("step", [STEPS_PER_EPOCH + 4, 2 * STEPS_PER_EPOCH])
def test_a_stopped_run_is_resumed_bit_for_bit(
    whole_run: tuple[str, RunDirectory],
    step: int,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    loader, whole = whole_run
    run = RunDirectory(tmp_path / "run")
    arguments = command(tiny_dataset, run.path, loader)
    with monkeypatch.context() as patched:
        patched.setattr(JsonLines, "on_train_batch_end", at_step(step, lambda: send(signal.SIGTERM)))
        assert train.main(arguments) == cli.EXIT_RESUME
    assert not run.final.exists()
    # The flags that the run's files do not have.
    assert f"--resume --output {run.path} --checkpoint-steps=3 --workers=1`" in capsys.readouterr().out
    assert train.main(arguments) == 0
    assert "resume  at epoch" in capsys.readouterr().out
    assert_same(run, whole)


def test_a_run_stopped_during_a_validation_is_resumed(
    whole_run: tuple[str, RunDirectory], tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, whole = whole_run
    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patched:
        evaluate = Loop._evaluate

        def stop(self, validation, epoch):
            send(signal.SIGINT)
            return evaluate(self, validation, epoch)

        patched.setattr(Loop, "_evaluate", stop)
        assert train.main(command(tiny_dataset, run.path, loader)) == cli.EXIT_RESUME
    assert Checkpoint.read(run.find_checkpoints()[0]).state["step"] == STEPS_PER_EPOCH
    assert train.main(["--resume", f"--output={run.path}", f"--loader={loader}", "--workers=1"]) == 0
    assert_same(run, whole)


def test_a_killed_run_is_resumed_bit_for_bit(
    whole_run: tuple[str, RunDirectory], tiny_dataset: Path, tmp_path: Path
) -> None:
    """`python -m tests.helpers.kill_proof` does the same with many kills."""
    loader, whole = whole_run
    run = RunDirectory(tmp_path / "run")
    arguments, notes = command(tiny_dataset, run.path, loader), tmp_path / "notes.jsonl"
    kill_at(arguments, notes, STEPS_PER_EPOCH + 4)
    with noting_batches(notes):
        assert train.main(arguments) == 0
    assert_same(run, whole)
    assert read_notes(notes) == read_notes(whole.path.with_suffix(".jsonl"))
    assert not list(run.path.rglob(".*"))


@pytest.fixture(scope="module")
def stopped_once(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDirectory(tmp_path_factory.mktemp("stopped") / "run")
    with pytest.MonkeyPatch.context() as patched:
        act = at_step(STEPS_PER_EPOCH + 5, lambda: send(signal.SIGTERM))
        patched.setattr(JsonLines, "on_train_batch_end", act)
        assert train.main(command(tiny_dataset, run.path, "tfdata")) == cli.EXIT_RESUME
    assert len(run.find_checkpoints()) == 3
    return run.path


@pytest.fixture
def stopped_run(stopped_once: Path, tmp_path: Path) -> RunDirectory:
    """A copy of a run that was stopped in the second epoch, with several checkpoints."""
    return RunDirectory(shutil.copytree(stopped_once, tmp_path / "run"))


def test_damaged_checkpoints_are_passed_over(
    stopped_run: RunDirectory, tiny_dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    newest, second, oldest = stopped_run.find_checkpoints()
    newest.write_bytes(newest.read_bytes()[:-1000])
    second.unlink()
    step = Checkpoint.read(oldest).state["step"]
    assert train.main(command(tiny_dataset, stopped_run.path, "tfdata")) == 0
    printed = capsys.readouterr()
    assert f"{newest}: its checksum is wrong; using the one before" in printed.err
    assert f"resume  at epoch 2, step {step + 1} of" in printed.out


def test_without_a_good_checkpoint_nothing_is_trained(
    stopped_run: RunDirectory, tiny_dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    for path in stopped_run.find_checkpoints():
        path.write_bytes(b"\0" * 100)
    before = stopped_run.log.read_bytes()
    assert train.main(command(tiny_dataset, stopped_run.path, "tfdata")) == 2
    assert "no checkpoint can be read" in capsys.readouterr().err
    assert stopped_run.log.read_bytes() == before


def test_another_recipe_or_data_set_is_refused_with_the_difference(
    stopped_run: RunDirectory, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    changed = command(tiny_dataset, stopped_run.path, "tfdata", "--initial-lr=0.5")
    assert train.main(changed) == 2
    assert "initial_lr 0.002 → 0.5" in capsys.readouterr().err
    other = tmp_path / "data"
    other.mkdir()
    for path in tiny_dataset.iterdir():
        (other / path.name).symlink_to(path)
    info = json.loads((tiny_dataset / "dataset.json").read_text())
    info["splits"]["train"]["quarantine"] = [3]
    (other / "dataset.json").unlink()
    (other / "dataset.json").write_text(json.dumps(info))
    assert train.main(command(other, stopped_run.path, "tfdata")) == 2
    assert "data set: other train quarantine" in capsys.readouterr().err
    assert train.main([*changed, "--force-resume"]) == 0
    assert json.loads(stopped_run.recipe.read_text())["initial_lr"] == 0.5


def test_a_forced_resume_on_other_data_writes_its_own_models(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, other = RunDirectory(tmp_path / "run"), tmp_path / "other"
    arguments = ["demo", "--image-size=32", "--batch-size=12", "--workers=1", "--loader=tfdata", f"--output={run.path}"]
    assert train.main([*arguments, "--epochs=1", f"--dataset-dir={tiny_dataset}"]) == 0
    other.mkdir()
    for path in tiny_dataset.iterdir():
        (other / path.name).symlink_to(path)
    info = json.loads((tiny_dataset / "dataset.json").read_text())
    info["classes"] = [known | {"name": f"other {number}"} for number, known in enumerate(info["classes"])]
    (other / "dataset.json").unlink()
    (other / "dataset.json").write_text(json.dumps(info))
    first = {path: path.read_bytes() for path in (run.best, run.final)}
    capsys.readouterr()
    assert train.main([*arguments, "--epochs=2", f"--dataset-dir={other}", "--force-resume"]) == 0
    (line,) = (
        line
        for line in capsys.readouterr().err.splitlines()
        if "the best model and the lowest loss begin again" in line
    )
    assert line.startswith(f"{run.path}: the data set has other classes; ")
    for path, content in first.items():
        assert path.with_stem(f"{path.stem}-of-earlier-data").read_bytes() == content
        assert path.read_bytes() != content
    assert run.best.exists()
    assert train.main([*arguments, "--epochs=1", f"--dataset-dir={other}", "--force-resume"]) == 0
    told = "resume  nothing is left to train: 2 epochs are done, and the recipe has epochs=1\n"
    assert told in capsys.readouterr().out


def test_resume_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train.main(["--resume"]) == 2
    assert "--output" in capsys.readouterr().err
    assert train.main(["--resume", f"--output={tmp_path / 'none'}"]) == 2
    assert "no run to resume" in capsys.readouterr().err


def test_a_finished_run_is_not_changed(whole_run, tiny_dataset: Path, capsys: pytest.CaptureFixture) -> None:
    loader, whole = whole_run
    before = whole.final.stat().st_mtime_ns
    assert train.main(command(tiny_dataset, whole.path, loader)) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert whole.final.stat().st_mtime_ns == before


def fill_disk(full: ExitStack, last: Path) -> None:
    """Fills the disk once the checkpoint `last` exists. Logs still fit, but no checkpoint and no model."""
    while not last.exists():
        time.sleep(0.01)
    full.enter_context(full_disk(100_000))


def test_a_full_disk_costs_checkpoints_not_the_run(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Written files stay, training continues to its end, and once there is room the rest is written."""
    run = RunDirectory(tmp_path / "run")
    arguments = command(tiny_dataset, run.path, "tfdata", "--epochs=1", "--log-steps=1")
    with monkeypatch.context() as patched, ExitStack() as full:
        patched.setattr(JsonLines, "on_train_batch_end", at_step(7, lambda: fill_disk(full, run.checkpoint(6))))
        assert train.main(arguments) == cli.EXIT_RESUME
    printed = capsys.readouterr().err
    assert "step-000000008.ckpt: not written (File too large); earlier ones stay" in printed
    assert "last.keras: not written (File too large); training continues" in printed
    assert "final.keras: not written (File too large), but the training is complete; make room" in printed
    assert [path.name for path in run.find_checkpoints()] == ["step-000000006.ckpt", "step-000000003.ckpt"]
    assert train.main(arguments) == 0
    assert [line["global_step"] for line in read_log(run, "step")] == list(range(1, STEPS_PER_EPOCH + 1))
    assert final_weights(run)


def test_a_run_can_be_stopped_while_the_disk_is_full(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patched, ExitStack() as full:

        def stop() -> None:
            fill_disk(full, run.checkpoint(3))
            send(signal.SIGTERM)

        patched.setattr(JsonLines, "on_train_batch_end", at_step(4, stop))
        assert train.main(command(tiny_dataset, run.path, "tfdata")) == cli.EXIT_RESUME
    assert "steps, but without a checkpoint of the last step; make room" in capsys.readouterr().err
    assert [path.name for path in run.find_checkpoints()] == ["step-000000003.ckpt"]
    assert not list(run.path.rglob(".*"))


def test_a_loss_that_is_not_finite_ends_the_run(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = RunDirectory(tmp_path / "run")
    flags = ["--optimizer=sgd", "--lr-sched=constant", "--initial-lr=4e9", "--iter-size=1", "--mixup=0"]
    assert train.main(command(tiny_dataset, run.path, "tfdata", *flags)) == cli.EXIT_FAILED
    assert "the loss is nan" in capsys.readouterr().err
    found = json.loads((run.path / "nonfinite.json").read_text())
    assert len(found["records"]) == BATCH_SIZE // 2  # each is there twice, with --repeats=2
    assert "train-0000" in found["records"][0]
    assert Checkpoint.read(run.checkpoints / "nonfinite.ckpt").arrays


def test_the_second_signal_stops_at_once(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        send(signal.SIGTERM)
        send(signal.SIGTERM)

    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(JsonLines, "on_train_batch_end", at_step(4, twice))
        assert train.main(command(tiny_dataset, run.path, "tfdata")) == cli.EXIT_INTERRUPTED
    assert [path.name for path in run.find_checkpoints()] == ["step-000000003.ckpt"]
    assert train.main(command(tiny_dataset, run.path, "tfdata")) == 0
