"""A model whose classes have another order than those of the data set: evaluated and fine-tuned by name."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from kimagenet import evaluate, train
from kimagenet.inference import fine_tuning
from kimagenet.runs.directory import RunDirectory
from pipelines import UserError
from tests.helpers.odd_run import IMAGE_SIZE, KINDS, OddRun

ORDER = np.random.default_rng(0).permutation(len(KINDS))


@pytest.fixture(scope="module")
def shuffled(odd_run: OddRun, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run of `odd_run` with its classes in another order, in run.json and in the model's last layer."""
    folder = tmp_path_factory.mktemp("shuffled") / "run"
    shutil.copytree(odd_run.run.path, folder)
    run = RunDirectory(folder)
    model = keras.models.load_model(run.final)
    logits = model.get_layer("Logits")
    logits.set_weights([weight[..., ORDER] for weight in logits.get_weights()])
    model.save(run.final)
    info = run.read_info()
    run.info.write_text(json.dumps(info | {"classes": [list(KINDS)[i] for i in ORDER]}))
    return run


def result(run: Path, folder: Path, *flags: str) -> dict:
    assert evaluate.main([str(run), "--loader=tfdata", "--per-class", f"--json={folder / 'x.json'}", *flags]) == 0
    return json.loads((folder / "x.json").read_text())


def test_another_order_gives_the_same_accuracy(odd_run: OddRun, shuffled: RunDirectory, tmp_path: Path) -> None:
    first, second = result(odd_run.run.path, tmp_path), result(shuffled.path, tmp_path)
    assert second["top1_correct"] == first["top1_correct"]
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-6)
    assert [part["name"] for part in second["per_class"]] == [list(KINDS)[i] for i in ORDER]
    assert sorted(map(str, first["per_class"])) == sorted(map(str, second["per_class"]))
    by_name = result(shuffled.path, tmp_path, f"--dataset-dir={odd_run.images}")
    assert by_name["loss"] == pytest.approx(first["loss"], rel=1e-6)


def renamed(odd_run: OddRun, folder: Path, change: dict[str, str]) -> Path:
    """A copy of the shards, some of whose classes have other names."""
    shutil.copytree(odd_run.dataset_dir, folder)
    info = json.loads((folder / "dataset.json").read_text())
    for part in info["classes"]:
        part["name"] = change.get(part["name"], part["name"])
    (folder / "dataset.json").write_text(json.dumps(info))
    return folder


def test_other_classes_are_refused_in_one_line(odd_run: OddRun, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = renamed(odd_run, tmp_path / "other", {"cmyk": "zebra"})
    assert evaluate.main([str(odd_run.run.path), f"--dataset-dir={other}", "--loader=tfdata"]) == 2
    error = capsys.readouterr().err
    assert "only the model has cmyk; only the data set has zebra" in error
    assert error.count("\n") == 1
    resume = ["--force-resume", f"--output={odd_run.run.path}", f"--dataset-dir={other}", "--loader=tfdata"]
    assert train.main(resume) == 2
    assert "predicts other classes" in capsys.readouterr().err


def test_fine_tuning_gives_the_last_layer_the_order_of_the_data_set(
    odd_run: OddRun, shuffled: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (3, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    expected = keras.models.load_model(odd_run.run.final)(images)
    size = (len(KINDS), IMAGE_SIZE)
    tuned = fine_tuning.build(shuffled.final, *size, dataset_dir=odd_run.dataset_dir)
    np.testing.assert_allclose(tuned(images), expected, atol=1e-6)
    assert "its classes have another order" in capsys.readouterr().out
    other = renamed(odd_run, tmp_path / "other", {"cmyk": "zebra"})
    tuned = fine_tuning.build(odd_run.run.final, *size, dataset_dir=other)
    assert (
        "its head for 10 classes is replaced by a new one for the data set's other classes" in capsys.readouterr().out
    )
    assert np.abs(tuned(images) - expected).max() > 0.01


def test_heads_of_other_models_are_reordered_or_replaced(
    odd_run: OddRun, shuffled: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    layers = keras.layers
    ending = [layers.GlobalMaxPooling2D(), layers.Dense(len(KINDS)), layers.Softmax()]
    model = keras.Sequential([layers.Input((IMAGE_SIZE, IMAGE_SIZE, 3)), *ending])
    path = shuffled.checkpoints / "last.keras"
    model.save(path)
    images = np.random.default_rng(0).uniform(-1, 1, (3, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    size = (len(KINDS), IMAGE_SIZE)
    tuned = fine_tuning.build(path, *size, dataset_dir=odd_run.dataset_dir)
    np.testing.assert_allclose(tuned(images), model(images).numpy()[:, np.argsort(ORDER)], atol=1e-6)
    other = renamed(odd_run, tmp_path / "other", {"cmyk": "zebra"})
    tuned = fine_tuning.build(path, *size, dataset_dir=other)
    assert np.abs(tuned(images) - model(images)).max() > 0.01
    assert "is replaced by a new one for the data set's other classes" in capsys.readouterr().out
    keras.Sequential([model, layers.Identity()]).save(path)
    with pytest.raises(UserError, match="another order than the data set's, and its last layer is not Dense"):
        fine_tuning.build(path, *size, dataset_dir=odd_run.dataset_dir)
