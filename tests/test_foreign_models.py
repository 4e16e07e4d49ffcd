"""Models that are not ours: operations in their graph, other ranges of input. They train, evaluate and export alike."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from kimagenet import evaluate, export, train
from kimagenet.inference import fine_tuning, trained
from kimagenet.models._regularization import l2_kernels
from kimagenet.networks.input_range import find_range
from kimagenet.networks.rebuild import rebuilt
from pipelines import UserError
from tests.helpers.data import NUM_CLASSES
from tests.helpers.messages import messages
from tests.helpers.odd_run import KINDS, OddRun

SIZE = 32
MEAN, VARIANCE = [0.48, 0.45, 0.4], [0.05, 0.05, 0.06]
Tensor = keras.KerasTensor


def foreign(first: Callable[[Tensor], Tensor], classes: int = NUM_CLASSES, dtype: str = "float32") -> keras.Model:
    """A model without our head, with operations in its graph."""
    keras.utils.set_random_seed(1)
    image = keras.Input((SIZE, SIZE, 3), dtype=dtype)
    pooled = keras.ops.mean(keras.ops.relu(layers.Conv2D(8, 3)(first(image))), axis=(1, 2))
    return keras.Model(image, keras.ops.softmax(layers.Dense(classes)(pooled)))


def noise(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, SIZE, SIZE, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (lambda x: x, None),
        (layers.Rescaling(1), None),
        (layers.Rescaling(1 / 255), (0, 255)),
        (layers.Rescaling(1 / 127.5, -1), (0, 255)),
        (lambda x: x / 127.5 - 1, (0, 255)),
        (lambda x: x[..., ::-1] - np.array([103.9, 116.8, 123.7], np.float32), (0, 255)),
        (lambda x: layers.Normalization(mean=MEAN, variance=VARIANCE)(layers.Rescaling(1 / 255)(x)), (0, 255)),
        (layers.Normalization(mean=MEAN, variance=VARIANCE), (0, 1)),
        (layers.Rescaling(2, -1), (0, 1)),
        (layers.Rescaling(0.5, 0.5), (-1, 1)),
        (layers.Rescaling(127.5, 127.5), (-1, 1)),
        (keras.Sequential([keras.Input((SIZE, SIZE, 3)), layers.RandomFlip(), layers.Rescaling(1 / 255)]), (0, 255)),
        (lambda x: keras.ops.clip(x, 0, 1) * 2 - 1, None),
    ],
)
def test_the_range_of_the_input_is_found(first: Callable[[Tensor], Tensor], expected: tuple | None) -> None:
    assert find_range(foreign(first)) == expected


@pytest.mark.parametrize(
    ("first", "to_its_range"),
    [(layers.Rescaling(1 / 255), lambda x: (x + 1) * 127.5), (layers.Rescaling(2, -1), lambda x: (x + 1) / 2)],
)
def test_images_are_scaled_to_this_range(
    first: Callable, to_its_range: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = foreign(first)
    path = tmp_path / "m.keras"
    model.save(path)
    expected = np.asarray(model(to_its_range(noise())))
    with messages("kimagenet", caplog):
        loaded, built = trained.load(path), fine_tuning.build(path, NUM_CLASSES, SIZE)
    assert caplog.text.count("its first layers show that it takes images in 0 to") == 2
    for found in (loaded, built):
        np.testing.assert_allclose(found(noise()), expected, atol=1e-5)
    assert len(l2_kernels(built)) == 2
    built.save(tmp_path / "again.keras")
    caplog.clear()
    with messages("kimagenet", caplog):
        np.testing.assert_allclose(trained.load(tmp_path / "again.keras")(noise()), expected, atol=1e-5)
    assert caplog.text == ""


def test_integer_inputs_take_0_to_255(tmp_path: Path) -> None:
    model = foreign(lambda x: keras.ops.cast(x, "float32") / 255, dtype="uint8")
    model.save(tmp_path / "m.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3))
    images = (pixels / 127.5 - 1).astype(np.float32)
    expected = np.asarray(model(pixels.astype(np.uint8)))
    np.testing.assert_allclose(trained.load(tmp_path / "m.keras")(images), expected, atol=1e-5)
    np.testing.assert_allclose(fine_tuning.build(tmp_path / "m.keras", NUM_CLASSES, SIZE)(images), expected, atol=1e-5)


def test_an_unknown_range_is_reported_with_a_remedy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = foreign(lambda x: x)
    path = tmp_path / "m.keras"
    model.save(path)
    with messages("kimagenet", caplog):
        np.testing.assert_allclose(trained.load(path)(noise()), model(noise()), atol=1e-6)
    assert re.search(r"range of its input is not known; .* say so by input_range, .* 0\.\.255,", caplog.messages[0])
    caplog.clear()
    with messages("kimagenet", caplog):
        np.testing.assert_allclose(trained.load(path, "0..255")(noise()), model((noise() + 1) * 127.5), atol=1e-5)
    assert caplog.text == ""


def test_adapted_statistics_are_kept(tmp_path: Path) -> None:
    """They are weights of Normalization, which computes with what it took from them before."""
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).uniform(0, 255, (20, SIZE, SIZE, 3)))
    model = foreign(normalization)
    again = rebuilt(model, SIZE)
    images = (noise() + 1) * 127.5
    np.testing.assert_allclose(again(images), model(images), atol=1e-6)


def test_models_without_a_known_input_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    two = [keras.Input((SIZE, SIZE, 3)), keras.Input((SIZE, SIZE, 3))]
    keras.Model(two, layers.Softmax()(layers.GlobalMaxPooling2D()(layers.Add()(two)))).save(path)
    for act in (lambda: trained.load(path), lambda: fine_tuning.build(path, 3, SIZE)):
        with pytest.raises(UserError, match="not square RGB images"):
            act()
    keras.Sequential([layers.GlobalMaxPooling2D(), layers.Softmax()]).save(path)
    for act in (lambda: trained.load(path), lambda: fine_tuning.build(path, 3, SIZE)):
        with pytest.raises(UserError, match=r"input is not known; let it begin with keras\.Input"):
            act()


def test_a_foreign_model_trains_evaluates_and_exports(odd_run: OddRun, tmp_path: Path) -> None:
    path, run = tmp_path / "m.keras", tmp_path / "run"
    foreign(lambda x: x / 255.0, len(KINDS)).save(path)
    data = [f"--dataset-dir={odd_run.dataset_dir}", "--loader=tfdata"]
    flags = ["--epochs=1", "--batch-size=4", "--amp=bfloat16", f"--output={run}"]
    try:
        assert train.main([str(path), *data, *flags]) == 0
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert evaluate.main([str(run), "--loader=tfdata", f"--json={tmp_path / 'x.json'}"]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["records"] == len(KINDS)
    assert export.main([str(run), f"--output={tmp_path / 'exported'}"]) == 0
