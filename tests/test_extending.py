"""The examples of docs/extending.md, put where the page says and used."""

import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kimagenet import models, optim, train
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines import AugmentSpec, BatchSpec, ShardSet, UserError, loaders, open_loader
from pipelines.loaders import dali
from tests.helpers.documents import python_file

PAGE = "docs/extending.md"


def drop_in(package: types.ModuleType, name: str, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the file lay in the package's folder."""
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)


def execute(first_line: str) -> types.ModuleType:
    module = types.ModuleType("example")
    sys.modules["example"] = module  # dataclasses look up their module
    exec(python_file(PAGE, first_line), module.__dict__)
    return module


def first_batch(dataset: Path, loader: str, spec: AugmentSpec, split: str = "train") -> list[np.ndarray]:
    with open_loader(loader, ShardSet.open(dataset, split), BatchSpec(16, 48), spec, workers=1, strict=True) as opened:
        return [part.numpy() for part in next(iter(opened.epoch(0)))]


@pytest.mark.parametrize("spec", [AugmentSpec.train(), AugmentSpec.evaluation()], ids=["train", "evaluation"])
def test_a_loader(spec: AugmentSpec, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop_in(loaders, "pillow", python_file(PAGE, "Decodes and warps with Pillow"), tmp_path, monkeypatch)
    assert "pillow" in loaders.names()
    split = "validation" if spec.is_evaluation else "train"
    ours, theirs = (first_batch(tiny_dataset, name, spec, split) for name in ("pillow", "tfdata"))
    assert np.abs(ours[0] - theirs[0]).mean() * 127.5 < 1  # Pillow rounds to whole levels between warp and colour
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    drop_in(models, "tiny", python_file(PAGE, "Three convolutions"), folder, monkeypatch)
    run = RunDirectory(tmp_path / "run")
    flags = ["--loader=tfdata", "--workers=1", f"--dataset-dir={tiny_dataset}", f"--output={run.path}"]
    assert train.main(["tiny", "--recipe=tiny", *flags]) == 0
    assert keras.models.load_model(run.final).name == "tiny"


def test_an_augmentation(tiny_dataset: Path) -> None:
    sheared = execute("A random horizontal shear").Sheared
    plain = first_batch(tiny_dataset, "tfdata", AugmentSpec(flip=0.5))
    ours = first_batch(tiny_dataset, "tfdata", sheared(flip=0.5, shear=0.2))
    np.testing.assert_array_equal(ours[1], plain[1])
    middle, rim = (np.abs(ours[0] - plain[0])[:, rows].mean() for rows in ([23, 24], [0, 47]))
    assert middle < rim / 3  # the middle rows hardly move
    if problem := dali.unavailable("cpu"):
        pytest.skip(f"no DALI to compare with: {problem}")
    assert np.abs(first_batch(tiny_dataset, "dali", sheared(flip=0.5, shear=0.2))[0] - ours[0]).mean() * 127.5 < 0.5


def test_an_optimizer() -> None:
    centralize = execute("Takes the mean over a kernel's inputs").Centralize
    kernel, bias = keras.Variable(np.ones((3, 2))), keras.Variable(np.ones(2))
    gradient = tf.constant([[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]])
    optimizer = optim.Lookahead(centralize(keras.optimizers.SGD(0.1)), slow_step_size=1.0)
    optimizer.apply([gradient, tf.constant([1.0, 2.0])], [kernel, bias])
    np.testing.assert_allclose(kernel.numpy(), 1 - 0.1 * np.array([[-2, -1], [-1, -1], [3, 2]]), atol=1e-6)
    np.testing.assert_allclose(bias.numpy(), [0.9, 0.8], atol=1e-6)
    copied = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(copied.inner_optimizer) is centralize


def test_an_optimizer_on_the_command_line(tiny_dataset: Path, tmp_path: Path) -> None:
    module = execute("Takes the mean over a kernel's inputs")
    run = RunDirectory(tmp_path / "run")
    flags = ["--image-size=32", "--batch-size=20", "--iter-size=2", "--use-lookahead", "--loader=tfdata", "--workers=1"]
    flags += [f"--optimizer={module.__name__}:make", f"--dataset-dir={tiny_dataset}", f"--output={run.path}"]
    assert train.main(["demo", *flags, "--epochs=1"]) == 0
    assert Recipe.load(run.recipe).optimizer == "example:make"
    assert train.main(["--force-resume", f"--output={run.path}", "--epochs=2"]) == 0
    assert keras.models.load_model(run.final).name == "demo"
    with pytest.raises(UserError, match=r"optimizer must be one of .* or module:function, not 'example make'"):
        Recipe(optimizer="example make")
