"""Networks of keras.applications and of the user's code, pretrained weights, and the range of the input."""

import urllib.error
from importlib import import_module
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from kimagenet import evaluate, export, models, train
from kimagenet.inference import start, trained
from kimagenet.networks import applications, pretrained
from kimagenet.networks.heads import find_ending
from kimagenet.networks.input_range import RANGES, with_range
from kimagenet.recipe import INPUT_RANGES, Recipe
from kimagenet.runs.directory import RunDirectory
from kimagenet.training.first_batch import problem_for, problem_of
from pipelines import UserError
from tests.helpers.messages import messages
from tests.helpers.odd_run import KINDS, OddRun

SIZE = 32
PIXELS = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.float32)
IMAGES = PIXELS / 127.5 - 1


def shake(model: keras.Model) -> keras.Model:
    """Gives a model random weights and batch statistics with which its outputs differ."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name in ("moving_variance", "gamma"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("moving_mean", "beta"):
            weight.assign(rng.uniform(-0.2, 0.2, weight.shape))
    return model


def test_the_names_are_those_of_keras() -> None:
    assert set(applications.APPLICATIONS) == {name for name in dir(keras.applications) if name[0].isupper()}
    assert ("auto", *sorted(RANGES)) == (INPUT_RANGES[0], *sorted(INPUT_RANGES[1:]))


@pytest.mark.parametrize("name", ["EfficientNetV2B0", "MobileNet", "MobileNetV2", "MobileNetV3Small", "VGG16"])
def test_keras_reads_the_file_that_the_error_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get_file(fname: str, *_: object, **__: object) -> str:
        asked.append(fname)
        raise OSError("no network")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    monkeypatch.setenv("KERAS_HOME", "/cache")
    with pytest.raises(UserError) as caught:
        start.build(Recipe(model=f"keras:{name}", image_size=SIZE, pretrained=True), 3)
    assert str(caught.value) == (
        f"/cache/models/{asked[0]}: the ImageNet weights of {name} cannot be read (no network); "
        "without a network, put this file there"
    )


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v2", "resnet50"])
def test_our_network_gives_the_results_of_the_one_whose_weights_it_gets(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = applications.SOURCES[name]
    theirs = shake(applications.build_features(source, SIZE, is_pretrained=False))
    monkeypatch.setattr(pretrained, "build_features", lambda *_: theirs)
    ours = pretrained.build(name, 7, SIZE)
    prepare = import_module(getattr(keras.applications, source).__module__).preprocess_input
    expected = np.asarray(theirs(prepare(PIXELS.copy()))).mean(axis=(1, 2))
    ending = find_ending(ours)
    assert ending is not None
    found = np.asarray(keras.Model(ours.inputs[0], ending.features)(IMAGES))
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert ours.output_shape == (None, 7)


@pytest.mark.parametrize("name", ["MobileNet", "VGG16"])
def test_networks_of_keras_get_the_pixels_that_they_want(name: str) -> None:
    """Two here; `tools.try_applications` compares all."""
    ours = start.build(Recipe(model=f"keras:{name}", image_size=SIZE), 3)
    constructor = getattr(keras.applications, name)
    theirs = constructor(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3))
    theirs.set_weights(ours.get_weights()[:-2])
    expected = np.asarray(theirs(import_module(constructor.__module__).preprocess_input(PIXELS.copy())))
    ending = find_ending(ours)
    assert ending is not None
    found = np.asarray(keras.Model(ours.inputs[0], ending.features)(IMAGES))
    np.testing.assert_allclose(found, expected.mean(axis=(1, 2)), atol=1e-4 * np.abs(expected).max())


def test_other_layers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = applications.build_features("MobileNet", SIZE, is_pretrained=False)
    monkeypatch.setattr(pretrained, "build_features", lambda *_: theirs)
    with pytest.raises(UserError, match="mobilenet_v2: its layers are not those of MobileNetV2 in this release"):
        pretrained.build("mobilenet_v2", 7, SIZE)


def test_weights_come_from_the_cache_of_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    theirs = shake(applications.build_features("MobileNetV2", 96, is_pretrained=False))
    folder = tmp_path / "models"
    folder.mkdir()
    theirs.save(folder / applications.APPLICATIONS["MobileNetV2"].weights)
    recipes = [Recipe(model=name, image_size=SIZE, pretrained=True) for name in ("mobilenet_v2", "keras:MobileNetV2")]
    ours, by_name = (start.build(recipe, 7) for recipe in recipes)
    for model in (ours, by_name):
        for weight, expected in zip(model.weights, theirs.weights, strict=False):
            np.testing.assert_array_equal(weight, expected)
        assert len(model.weights) == len(theirs.weights) + 2

    def fail(*_: object) -> None:
        raise urllib.error.URLError("no such host")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", fail)
    (folder / applications.APPLICATIONS["MobileNetV2"].weights).unlink()
    with pytest.raises(UserError, match=r"no_top\.h5: the ImageNet weights of MobileNetV2 cannot be read .*no such ho"):
        start.build(recipes[0], 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "googlenet_bn", "pretrained": True}, "Keras has no ImageNet weights for it; there are weights for"),
        ({"model": "keras:ResNet5"}, r"no such network; did you mean ResNet50\?"),
        ({"model": "keras:X"}, "no such network; there are ConvNeXtTiny, "),
        ({"model": "a.b:c", "pretrained": True}, "pretrained is for networks by name; this one has its own weights"),
        ({"model": "demo", "input_range": "caffe"}, "its input range is known, so input_range cannot change it"),
        ({"model": "mobilnet_v2"}, r"no such model; did you mean mobilenet_v2\?"),
    ],
)
def test_wrong_choices_are_refused_in_one_line(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        start.checked(Recipe(**changes))
    assert start.checked(Recipe(model="keras:ResNet50", pretrained=True)).pretrained


def test_a_network_that_cannot_have_this_size_says_so() -> None:
    with pytest.raises(UserError, match="keras:InceptionV3: takes images of at least 75 pixels, not 32"):
        start.build(Recipe(model="keras:InceptionV3", image_size=SIZE), 3)


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe"])
def test_ranges_are_those_of_preprocess_input(mode: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    ending = [layers.Conv2D(4, 3), layers.GlobalMaxPooling2D(), layers.Dense(3, "softmax")]
    model = keras.Sequential([layers.Input((SIZE, SIZE, 3)), *ending])
    expected = model(keras.applications.imagenet_utils.preprocess_input(PIXELS.copy(), mode=mode))
    model.save(tmp_path / "m.keras")
    scaled = trained.load(tmp_path / "m.keras", mode)
    np.testing.assert_allclose(scaled(IMAGES), expected, atol=1e-5)
    scaled.save(tmp_path / "again.keras")  # it takes -1 to 1, and says so
    np.testing.assert_allclose(trained.load(tmp_path / "again.keras")(IMAGES), expected, atol=1e-5)
    np.testing.assert_allclose(with_range(model, RANGES[mode])(IMAGES), expected, atol=1e-5)


def test_a_range_that_the_first_layers_contradict_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ending = [layers.Rescaling(1 / 255), layers.GlobalMaxPooling2D(), layers.Dense(3, "softmax")]
    keras.Sequential([layers.Input((SIZE, SIZE, 3)), *ending]).save(tmp_path / "m.keras")
    with messages("kimagenet", caplog):
        trained.load(tmp_path / "m.keras", "tf")
    assert "its first layers show that it takes images in 0 to 255, but input_range is tf; it gets tf" in caplog.text


def test_models_of_any_size_are_evaluated(
    odd_run: OddRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    keras.utils.set_random_seed(1)
    ending = [layers.Conv2D(4, 3), layers.GlobalMaxPooling2D(), layers.Dense(len(KINDS), "softmax")]
    model = keras.Sequential([layers.Input((None, None, 3)), *ending])
    path = tmp_path / "m.keras"
    model.save(path)
    flags = [str(path), "--loader=tfdata", f"--dataset-dir={odd_run.dataset_dir}"]
    assert evaluate.main([*flags, "--image-size=40", "--batch-size=4"]) == 0
    assert trained.load(path, image_size=40).input_shape == (None, 40, 40, 3)
    with messages("kimagenet", caplog):
        assert trained.load(path).input_shape == (None, 224, 224, 3)
    assert "takes images of any size; it gets 224 pixels" in caplog.text
    assert evaluate.main([str(odd_run.run.path), "--image-size=40"]) == 2
    assert "takes images of 32 pixels, not 40; leave it out (--image-size)" in capsys.readouterr().err


def test_a_size_that_the_layers_do_not_take_is_one_line(
    odd_run: OddRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = keras.Input((None, None, 3))
    ending = layers.Dense(len(KINDS), "softmax")(layers.Reshape((32 * 32 * 3,))(image))
    path = tmp_path / "m.keras"
    keras.Model(image, ending).save(path)
    flags = [str(path), "--loader=tfdata", f"--dataset-dir={odd_run.dataset_dir}", "--batch-size=4"]
    assert evaluate.main([*flags, "--image-size=32"]) == 0
    assert evaluate.main([*flags, "--image-size=40"]) == 2
    found = capsys.readouterr().err.splitlines()[-1]
    assert found.startswith(f"error: {path}: does not work at 40 pixels (")
    assert found.endswith("(--image-size)")


MODULE = """
import keras
from keras import layers

def build(num_classes, image_size):
    image = keras.Input((image_size, image_size, 3))
    x = layers.Conv2D(6, 3, activation="relu")(layers.Rescaling(1 / 255)(image))
    return keras.Model(image, layers.Dense(num_classes, "softmax")(layers.GlobalAveragePooling2D()(x)))

def features():
    image = keras.Input((None, None, 3))
    return keras.Model(image, layers.Conv2D(6, 3, activation="relu")(image))

def wrong(**given):
    return sorted(given)
"""


@pytest.mark.parametrize("name", ["build", "features"])
def test_a_function_of_the_user_is_trained_evaluated_and_exported(
    name: str, odd_run: OddRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    run = RunDirectory(tmp_path / "run")
    flags = ["--loader=tfdata", f"--dataset-dir={odd_run.dataset_dir}", "--batch-size=4", f"--image-size={SIZE}"]
    flags += ["--epochs=1", "--iter-size=1", f"--output={run.path}"]
    assert train.main([f"my_networks:{name}", *flags]) == 0
    saved = keras.models.load_model(run.final)
    assert saved.output_shape == (None, len(KINDS))
    scales = [layer.scale for layer in saved.layers if isinstance(layer, layers.Rescaling)]
    assert scales == ([127.5, 1 / 255] if name == "build" else [])
    assert evaluate.main([str(run.path), "--loader=tfdata"]) == 0
    assert export.main([str(run.path), f"--output={tmp_path / 'exported'}"]) == 0
    capsys.readouterr()
    assert train.main(["my_networks:wrong", *flags[:-1], f"--output={tmp_path / 'other'}"]) == 2
    assert "my_networks:wrong: returned list, not a Keras model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES, ""),
        (PIXELS, "its values are 0 to 255, but models get -1 to 1"),
        (np.full((2, 4, 4, 3), np.nan), "its values are nan"),
        (np.full((2, 4, 4, 3), -0.99), r"almost of one colour (mean -0.99"),
    ],
)
def test_a_batch_that_makes_no_sense_is_noticed(images: np.ndarray, message: str) -> None:
    assert message in problem_of(images)
    assert bool(message) == bool(problem_of(images))


def test_values_that_the_network_does_not_know_are_noticed() -> None:
    keras.utils.set_random_seed(1)
    model = models.build("demo", 3, SIZE)
    assert problem_for(model, IMAGES) == ""  # it has no statistics yet
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0  # its statistics are those of one batch
    model(PIXELS, training=True)
    assert "times as wide as those that it was trained with; is input_range right?" in problem_for(model, IMAGES)
    assert problem_for(with_range(model, RANGES["0..255"]), IMAGES) == ""
    assert problem_for(keras.Sequential([layers.Input((SIZE, SIZE, 3)), layers.Flatten()]), IMAGES) == ""


def test_the_first_batch_of_a_run_is_looked_at(
    odd_run: OddRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keras.utils.set_random_seed(1)
    model = models.build("demo", len(KINDS), SIZE)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(1e4 * np.ones(layer.moving_variance.shape))
    model.save(tmp_path / "m.keras")
    flags = ["--loader=tfdata", f"--dataset-dir={odd_run.dataset_dir}", "--batch-size=4", "--epochs=1"]
    with messages("kimagenet", caplog):
        assert train.main([str(tmp_path / "m.keras"), *flags, f"--output={tmp_path / 'run'}"]) == 0
    assert "the first batch: " in caplog.text
