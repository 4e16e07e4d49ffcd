"""The command line of training, and the run directory it leaves behind."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from kimagenet import cli, evaluate, models, train, train_settings
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory, save_model
from pipelines import UserError
from pipelines.loader import Unavailable
from pipelines.loaders import dali
from tests.helpers.data import VALIDATION_RECORDS
from tests.helpers.programs import run_program
from tests.helpers.runs import read_events, read_log

ROOT = Path(__file__).parents[1]
SMALL = ["demo", "--image-size=32", "--batch-size=20", "--loader=tfdata", "--workers=1"]


def run_train(dataset: Path, output: Path, *flags: str) -> int:
    return train.main([*SMALL, f"--dataset-dir={dataset}", f"--output={output}", *flags])


def resolve(*arguments: str, is_demo: bool = False) -> Recipe:
    """The recipe for the demo's records."""
    given = train.with_values(cli.with_hyphens(arguments))
    return train_settings.resolve_recipe(train.make_parser().parse_args(given), is_demo)[0]


@pytest.fixture(scope="module")
def finished_run(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Two epochs of five steps."""
    output = tmp_path_factory.mktemp("runs") / "run"
    assert run_train(tiny_dataset, output, "--epochs=2", "--log_steps=2", "--use_lookahead", "--label_smoothing") == 0
    return RunDirectory.existing(output)


def test_decoupled_decay_replaces_the_recipes_l2() -> None:
    recipe = resolve("resnet50", "--decoupled-weight-decay", "0.05")
    assert (recipe.weight_decay, recipe.decoupled_weight_decay) == (0.0, 0.05)
    with pytest.raises(UserError, match="decay"):
        resolve("resnet50", "--decoupled-weight-decay", "0.05", "--weight-decay", "1e-4")


def test_leaves_a_complete_run_directory(finished_run: RunDirectory, tiny_dataset: Path) -> None:
    recipe = Recipe.load(finished_run.recipe)
    assert (recipe.model, recipe.epochs, recipe.image_size, recipe.label_smoothing) == ("demo", 2, 32, 0.1)
    assert recipe.use_lookahead
    info = finished_run.read_info()
    assert info["dataset_dir"] == str(tiny_dataset)
    assert info["records"] == {"train": 101, "validation": VALIDATION_RECORDS}
    for path in (finished_run.last, finished_run.best, finished_run.final):
        assert keras.models.load_model(path).count_params() > 0
    assert not list(finished_run.path.rglob("*.tmp")) + list(finished_run.path.rglob(".*"))


def test_log_jsonl_keeps_its_documented_keys(finished_run: RunDirectory) -> None:
    lines = read_log(finished_run)
    assert [line["event"] for line in lines] == ["start", *["step"] * 3, "epoch", *["step"] * 3, "epoch", "end"]
    beginning = {"version", "epochs", "steps_per_epoch", "global_batch", "replicas", "global_step"}
    assert set(lines[0]) == {"event", "time"} | beginning
    position = {"event", "time", "epoch", "global_step", "learning_rate", "loss", "top1"}
    speed = {"images_per_second", "data_wait", "storage_wait"}
    assert set(lines[1]) == position | {"step"}  # within the warm-up
    assert set(lines[5]) == position | speed | {"step"}
    assert set(lines[8]) == position | speed | {"val_loss", "val_top1", "val_top5", "skipped"}
    assert [line["step"] for line in lines[1:4]] == [1, 3, 4]
    assert [line["global_step"] for line in lines[5:]] == [7, 9, 10, 10, 10]
    # An epoch's means are those of its intervals, by their numbers of steps.
    assert np.average([line["loss"] for line in lines[1:4]], weights=[2, 2, 1]) == pytest.approx(lines[4]["loss"])


def test_tensorboard_has_the_same_numbers(finished_run: RunDirectory) -> None:
    log = read_log(finished_run)
    found = {name: _scalars(finished_run.tensorboard / name) for name in ("train", "validation")}
    steps = {line["global_step"]: line["loss"] for line in log if line["event"] == "step"}
    epochs = {line["global_step"]: line["val_top1"] for line in log if line["event"] == "epoch"}
    assert found["train"]["quality/loss"] == pytest.approx(steps)
    assert found["validation"]["quality/top1"] == pytest.approx(epochs)
    quality, speed = (
        {"quality/loss", "quality/top1"},
        {f"speed/{name}" for name in ("images_per_second", "data_wait", "storage_wait")},
    )
    assert set(found["train"]) == {"inputs", "schedule/learning_rate"} | quality | speed


def test_tensorboard_has_the_recipe(finished_run: RunDirectory) -> None:
    """Once, as values of the table HPARAMS and as text."""
    recipe = Recipe.load(finished_run.recipe)
    parts = {value.tag: value for event in read_events(finished_run.tensorboard) for value in event.summary.value}
    assert set(parts) == {"_hparams_/session_start_info", "recipe"}
    plugin = HParamsPluginData.FromString(parts["_hparams_/session_start_info"].metadata.plugin_data.content)
    found = plugin.session_start_info
    assert found.hparams["epochs"].number_value == recipe.epochs
    assert found.hparams["optimizer"].string_value == recipe.optimizer
    assert found.hparams["use_lookahead"].bool_value == recipe.use_lookahead
    assert set(found.hparams) == {f.name for f in dataclasses.fields(Recipe)}
    assert recipe.to_json() in parts["recipe"].tensor.string_val[0].decode()


def test_summary_csv_has_a_line_for_each_epoch(finished_run: RunDirectory) -> None:
    log = read_log(finished_run)
    with open(finished_run.summary, newline="") as stream:
        found = list(csv.DictReader(stream))
    for line, expected in zip(found, [line for line in log if line["event"] == "epoch"], strict=True):
        assert {name: float(value) for name, value in line.items() if value} == {
            name: value for name, value in expected.items() if name not in ("event", "time", "storage_wait")
        }


def _scalars(directory: Path) -> dict[str, dict[int, float]]:
    scalars: dict[str, dict[int, float]] = {}
    for event in read_events(directory):
        for value in event.summary.value:
            if value.HasField("image"):
                # A batch of 20: three rows of 8.
                assert tf.io.decode_png(value.image.encoded_image_string).shape == (3 * 32, 8 * 32, 3)
                scalars[value.tag] = {}
                continue
            scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return scalars


def test_evaluate_finds_the_number_of_the_run(finished_run: RunDirectory, tmp_path: Path) -> None:
    last = read_log(finished_run)[-2]
    result = tmp_path / "result.json"
    flags = ["--loader=tfdata", "--batch-size=7", f"--json={result}"]
    assert evaluate.main([str(finished_run.path), *flags]) == 0
    found = json.loads(result.read_text())
    assert found["records"] == VALIDATION_RECORDS
    assert (found["top1"], found["top5"]) == (last["val_top1"], last["val_top5"])
    assert found["loss"] == pytest.approx(last["val_loss"], rel=1e-6)


def test_same_seed_same_run(finished_run: RunDirectory, tiny_dataset: Path, tmp_path: Path) -> None:
    """recipe.json repeats a run."""
    output = tmp_path / "again"
    flags = [
        f"--recipe={finished_run.recipe}",
        "--loader=tfdata",
        f"--dataset-dir={tiny_dataset}",
        f"--output={output}",
    ]
    assert train.main(flags) == 0
    first, again = (keras.models.load_model(run.final) for run in (finished_run, RunDirectory(output)))
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_interrupted_run_keeps_the_weights(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from kimagenet.runs.saving import KeepLastAndBest

    def interrupt(self, batch, logs=None):
        if batch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(KeepLastAndBest, "on_train_batch_end", interrupt)
    output = tmp_path / "run"
    assert run_train(tiny_dataset, output, "--epochs=2") == cli.EXIT_RESUME
    printed = capsys.readouterr()
    assert re.search(r"stopped after [34] of 10 steps", printed.out)
    assert "Traceback" not in printed.err
    run = RunDirectory.existing(output)
    assert keras.models.load_model(run.last).count_params() > 0
    assert not run.final.exists()
    assert evaluate.main([str(output), "--loader=tfdata", "--checkpoint=last"]) == 0
    assert evaluate.main([str(output), "--loader=tfdata"]) == 2
    assert "not written yet, the run is not finished; choose last (--checkpoint)" in capsys.readouterr().err


def test_save_model_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.build("demo", 3, 32)
    save_model(model, tmp_path / "a.keras")
    before = (tmp_path / "a.keras").read_bytes()

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("pipelines.system.files.sync", fail)
    with pytest.raises(OSError, match="no space left"):
        save_model(model, tmp_path / "a.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["a.keras"]
    assert (tmp_path / "a.keras").read_bytes() == before


def test_without_a_validation_split(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures count as far larger than needed here: a line behind the banner says it."""
    monkeypatch.setattr("pipelines.shards.advice._FAR_LARGER", 1)
    dataset = tmp_path / "data"
    dataset.mkdir()
    for path in tiny_dataset.glob("train*"):
        (dataset / path.name).symlink_to(path)
    info = json.loads((tiny_dataset / "dataset.json").read_text())
    del info["splits"]["validation"]
    (dataset / "dataset.json").write_text(json.dumps(info))
    assert run_train(dataset, tmp_path / "run", "--epochs=1") == 0
    assert RunDirectory(tmp_path / "run").final.is_file()
    assert not RunDirectory(tmp_path / "run").best.exists()
    lines = capsys.readouterr().out.splitlines()
    (run,) = (number for number, line in enumerate(lines) if line.startswith("run     "))
    assert lines[run + 1].startswith("data    most training pictures are far larger than 32 px need (their median ")
    assert lines[run + 2].startswith("note    only 5 updates in the whole run, too few to learn much: ")
    assert lines[run + 3].startswith("note    BatchNormalization's momentum 0.9 is too slow for 5 steps: 59% of the ")


def test_recipes_and_flags() -> None:
    original = Recipe(model="mobilenet_v2", batch_size=64, iter_size=4, crop_ratio=1.0)
    assert resolve("mobilenet_v2", "--recipe=original") == original
    resnet50 = resolve("resnet50", "--recipe=original", "--epochs=2")
    assert (resnet50.batch_size, resnet50.iter_size, resnet50.epochs) == (16, 16, 2)
    assert resolve("--recipe=original").model == "googlenet_bn"
    assert resolve("osnet", "--recipe=osnet") == models.recipes()["osnet"]
    assert resolve("--recipe=resnet50") == models.recipes()["resnet50"]
    assert resolve("demo", "--recipe=resnet50") == models.recipes()["resnet50"].replace(model="demo")
    assert resolve(is_demo=True) == models.recipes()["demo"]
    assert resolve("--batch-size=3", is_demo=True).batch_size == 3


def test_command_lines_of_the_original_are_valid() -> None:
    line = "--dataset_dir d --dropout_rate 0.4 --weight_decay 2e-4 --optimizer rmsprop --epsilon 0.1 --batch_size 32"
    line += " --iter_size 1 --lr_sched exp --initial_lr 1e-2 --final_lr 1e-5 --epochs 60 --use_lookahead"
    expected = Recipe(
        model="googlenet_bn",
        dropout_rate=0.4,
        weight_decay=2e-4,
        optimizer="rmsprop",
        batch_size=32,
        lr_sched="exp",
        initial_lr=1e-2,
        final_lr=1e-5,
        epochs=60,
        use_lookahead=True,
        label_smoothing=0.1,
        crop_ratio=1.0,
    )
    assert resolve(*line.split(), "--label_smoothing", "googlenet_bn") == expected
    assert resolve("googlenet_bn", *line.split(), "--label_smoothing") == expected
    assert resolve("googlenet_bn", "--label_smoothing", "0.2").label_smoothing == 0.2
    assert resolve("googlenet_bn", "--label-smoothing=0").label_smoothing == 0


def test_every_recipe_field_is_a_flag() -> None:
    text = train.make_parser().format_help()
    for name in Recipe.__dataclass_fields__:
        assert name == "model" or f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bach-size", "3"], "--bach-size: no such flag; did you mean --batch-size?"),
        (["--batch", "3"], "--batch: no such flag"),
        (["--epochs", "x"], "invalid int value"),
        (["--epochs", "0"], "epochs must be at least 1, not 0 (--epochs)"),
        (["--optimizer", "sgdd"], "optimizer must be one of sgd, adam, "),
        (["--optimizer", "nowhere:make"], "nowhere:make: the module cannot be imported (ModuleNotFoundError: "),
        (["--optimizer", "math:nothing"], "math:nothing: the module has no function nothing (--optimizer)"),
        (["--optimizer", "builtins:str"], "builtins:str: returned str, not a Keras optimizer (--optimizer)"),
        (["--loader", "foo"], "invalid choice: 'foo'"),
        (["--workers", "0"], "must be positive"),
        (["--recipe", "foo"], "foo: no such recipe"),
        (["--recipe", "/no/recipe.json"], "/no/recipe.json: No such file"),
        (["foo"], "foo: no such model; the models are demo,"),
        (["resnet5"], "resnet5: no such model; did you mean resnet50? the models are demo,"),
        (["--recipe", "resnet5"], "resnet5: no such recipe; did you mean resnet50?"),
        (["demo", "bar"], "bar: unexpected argument"),
        (["--dataset-dir", "/no/folder"], "/no/folder: no such folder"),
        (["--lr", "0"], "initial_lr must be greater than 0, not 0.0 (--initial-lr)"),
        (["--batch-size", "200"], "do not fill one batch of 200"),
        (["--iter-size", "1000"], "nothing would be trained; choose a smaller iter_size (--iter-size)"),
        (["--output", __file__], "not a folder"),
    ],
)
def test_wrong_use_gets_one_line(
    flags: list[str], message: str, tiny_dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    base = [] if "--dataset-dir" in flags else [f"--dataset-dir={tiny_dataset}"]
    try:
        code = train.main([*base, "--loader=tfdata", *flags])
    except SystemExit as error:  # argparse
        code = error.code
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert re.fullmatch(r"error: [^\n]+\n", error)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard: shard.with_name(shard.name + ".idx").write_bytes(b""), ".idx: the index is empty; run `python"),
        (lambda shard: shard.with_name(shard.name + ".idx").unlink(), ".idx: No such file or directory; run `python"),
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-9]), "copy or build it again"),
        (lambda shard: shard.unlink(), "the shard is missing"),
    ],
)
def test_damaged_shards_are_refused_before_anything_is_trained(
    damage, message: str, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dataset = shutil.copytree(tiny_dataset, tmp_path / "shards")
    damage(dataset / "train-00001-of-00003")
    code = train.main(["demo", "--loader=dali", f"--dataset-dir={dataset}", f"--output={tmp_path / 'run'}"])
    assert code == 2
    error = capsys.readouterr().err
    assert str(dataset / "train-00001-of-00003") in error
    assert message in error
    assert re.fullmatch(r"error: [^\n]+\n", error)
    assert not (tmp_path / "run").exists()


def test_without_dali_a_run_warns_once_and_uses_tfdata(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dali, "unavailable", lambda device: Unavailable("package nvidia-dali-cuda120 is not installed"))
    monkeypatch.setattr(cli, "_show_messages_of", lambda *packages: None)
    base = ["demo", "--loader=dali", f"--dataset-dir={tiny_dataset}", "--epochs=1", "--image-size=32"]
    assert train.main([*base, f"--output={tmp_path / 'run'}"]) == 0
    assert len([message for message in caplog.messages if "nvidia-dali-cuda120" in message]) == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["loader"] == {
        "name": "tfdata",
        "device": "cpu",
        "replicas": 1,
    }
    assert train.main([*base, f"--output={tmp_path / 'strict'}", "--strict-loader"]) == 2
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize(
    ("flags", "value"),
    [(["--label_smoothing"], 0.1), (["--label-smoothing", "5e-2"], 0.05), (["--label_smoothing=0.2"], 0.2)],
)
def test_label_smoothing_is_a_switch_or_takes_a_value(flags: list[str], value: float) -> None:
    assert resolve("resnet50", *flags).label_smoothing == value


def test_a_run_is_never_overwritten(
    finished_run: RunDirectory, tiny_dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    before = finished_run.final.read_bytes()
    assert run_train(tiny_dataset, finished_run.path) == 2
    message = capsys.readouterr().err
    assert "its run has another recipe or data set" in message
    assert "epochs 2 → 18" in message
    assert finished_run.final.read_bytes() == before
    with pytest.raises(UserError, match="not a run directory"):
        RunDirectory.existing(tiny_dataset)


def test_help_needs_no_tensorflow() -> None:
    for name in ("train", "evaluate"):
        result = run_program("without_tensorflow", f"kimagenet.{name}", "--help")
        assert result.returncode == 0, result.stderr
        assert f"usage: python -m kimagenet.{name}" in result.stdout


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m kimagenet.train --list-recipes | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("recipe")
    assert not done.stderr


def test_only_the_chief_prints(
    finished_run: RunDirectory, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Of a run that is finished, which needs no other worker."""
    jobs = {"cluster": {"worker": ["a:1", "b:1"]}}
    for rank, words in ((0, "this run is finished"), (1, "")):
        monkeypatch.setenv("TF_CONFIG", json.dumps(jobs | {"task": {"type": "worker", "index": rank}}))
        assert train.main(["--resume", f"--output={finished_run.path}"]) == 0
        printed = capsys.readouterr().out
        assert words in printed
        assert bool(printed) == bool(words)
