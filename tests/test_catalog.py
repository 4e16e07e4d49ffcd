"""The tables of recipes and models, the modern recipes, and a model that is one new file."""

import re
import shutil
import sys
from pathlib import Path

import keras
import pytest

from kimagenet import catalog, models, optim, train
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from tests.helpers.model_tables import COUNTS
from tests.helpers.programs import PROGRAMS, run_program


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model file of a user's in the models' folder, or what Python takes for it."""
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(PROGRAMS / "toy_model.py", folder / "toy.py")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(folder)])
    yield "toy"
    sys.modules.pop("kimagenet.models.toy", None)


def test_a_model_is_one_new_file(toy: str, tiny_dataset: Path, tmp_path: Path) -> None:
    assert toy in models.names()
    assert models.build(toy, num_classes=5, image_size=48).output_shape == (None, 5)
    assert re.search(r"^toy +32 +20 +2 +adam ", catalog.recipes_table(), re.MULTILINE)
    assert "toy" in train.make_parser().format_help()
    run = RunDirectory(tmp_path / "run")
    flags = ["--loader=tfdata", "--workers=1", f"--dataset-dir={tiny_dataset}", f"--output={run.path}"]
    assert train.main([toy, *flags]) == 0
    assert Recipe.load(run.recipe) == models.recipes()["toy"]
    assert keras.models.load_model(run.final).name == "toy"


def test_list_recipes_needs_no_tensorflow() -> None:
    done = run_program("without_tensorflow", "kimagenet.train", "--list_recipes")
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert header.split()[0] == "recipe"
    assert [line.split()[0] for line in lines] == list(models.recipes())
    column = header.index("top-1")
    assert all(line[column - 2 : column] == "  " for line in lines)
    assert re.search(r"resnet50_modern .* 128×8 .* mixup=0.2 cutmix=1 .* 80.86% +torchvision", done.stdout)


def test_models_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "names", lambda: ("demo", "mobilenet_v2"))
    header, demo, mobilenet = catalog.models_table().splitlines()
    assert header.split()[:3] == ["model", "parameters", "multiply-adds"]
    assert demo.endswith("–")
    expected = r"mobilenet_v2 +3,538,984 +0.301 G +224 +mobilenet_v2, mobilenet_v2_modern +70.54% +72.15%"
    assert re.fullmatch(expected, mobilenet)


def test_layers_table() -> None:
    header, *lines = catalog.layers_table("googlenet_bn").splitlines()
    assert header.split() == ["layer", "kind", "kernel", "stride", "output", "parameters"]
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["conv1"] == ["Conv2D", "7×7", "2", "112×112×64", "9,408"]
    assert rows["inception_4e_5x5"] == ["Conv2D", "5×5", "1", "14×14×128", "102,400"]
    assert rows["pool3"] == ["MaxPooling2D", "3×3", "2", "14×14×480", "0"]
    assert rows["inception_5b_output"] == ["Concatenate", "–", "–", "7×7×1024", "0"]
    assert rows["Logits"] == ["Dense", "–", "–", "1000", "1,025,000"]
    assert len(rows) == 57 + 13 + 9 + 2  # convolutions, pools, blocks; the global pool and the dense layer


def test_multiply_adds_by_hand() -> None:
    inputs = keras.Input((8, 6, 3))
    inner_input = keras.Input((4,))
    inner = keras.Model(inner_input, keras.layers.Dense(4)(inner_input))
    x = keras.layers.Conv2D(4, 3, 2, padding="same")(inputs)  # 27·4 weights at 4×3 places
    x = keras.layers.DepthwiseConv2D(5, padding="same")(x)  # 25·4 weights at 4×3 places
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Add()([inner(x), inner(inner(x))])  # 16 weights, three times
    model = keras.Model(inputs, keras.layers.Dense(7)(x))
    assert models.multiply_adds(model) == 27 * 4 * 12 + 25 * 4 * 12 + 3 * 16 + 28


@pytest.mark.parametrize("name", COUNTS)
def test_every_imagenet_model_has_a_modern_recipe(name: str) -> None:
    recipe, reported = models.recipes()[f"{name}_modern"], models.reported()[f"{name}_modern"]
    assert recipe.model == name
    assert recipe.batch_size * recipe.iter_size == recipe.lr_reference_batch == 1024
    assert (recipe.lr_sched, recipe.warmup_epochs, recipe.label_smoothing) == ("cosine", 5, 0.1)
    augment = ("trivial", 4) if name == "resnet50_v1_5" else ("standard", 1)
    assert (recipe.mixup, recipe.cutmix, recipe.erase, recipe.augment, recipe.repeats) == (0.2, 1.0, 0.1, *augment)
    assert recipe.schedule().at(5) == pytest.approx(0.5)
    # Halving the batch halves the rate.
    assert recipe.replace(iter_size=recipe.iter_size // 2).schedule().at(5) == pytest.approx(0.25)
    assert "run here" in reported.source  # says that it was not
    assert "torchvision" in reported.source
    inner = optim.build(recipe).inner_optimizer
    assert (type(inner).__name__, inner.use_ema, inner.ema_momentum) == ("SGD", True, 0.99997)
