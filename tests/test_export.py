"""Exports give the Keras model's probabilities, appear whole or not at all, and say what they are."""

import importlib.util
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kimagenet import evaluate, export, models, predict
from kimagenet.inference import exporters
from pipelines import AugmentSpec, BatchSpec
from pipelines.images import ImageReader
from pipelines.tf_image import Work, evaluation_work
from pipelines.uniform import RecordUniform
from tests.helpers.data import jpeg, photo
from tests.helpers.odd_run import IMAGE_SIZE, KINDS, SHORT_SIDE, OddRun
from tools import compare_uses

SIZES = ((1, 1), (2, 3), (17, 20), (32, 32), (48, 77), (64, 64), (97, 64), (375, 500), (1000, 333), (2, 900))


@pytest.fixture(scope="module")
def generated() -> list[bytes]:
    """Twelve upright JPEGs of many sizes, two of them grey, one progressive."""
    rng = np.random.default_rng(3)
    return [jpeg(photo(rng, i % 10, *rng.integers(20, 140, 2)), kind) for i, kind in enumerate((0, 1, 2, 3) * 3)]


def pixels(files: list[bytes]) -> np.ndarray:
    reader = ImageReader(BatchSpec(1, IMAGE_SIZE), AugmentSpec.evaluation(0.9), SHORT_SIDE)
    return np.stack([reader.pixels(data) for data in files])


def from_jpegs(folder: Path, files: list[bytes]) -> np.ndarray:
    loaded = tf.saved_model.load(str(folder))
    names = Path(loaded.classes.asset_path.numpy().decode()).read_text().splitlines()
    assert names == list(KINDS)
    return loaded.signatures["serving_default"](jpeg=tf.constant(files))["probabilities"].numpy()


def by_onnx(folder: Path, files: list[bytes]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.shape) == ("images", ["N", IMAGE_SIZE, IMAGE_SIZE, 3])
    assert (given.name, given.shape) == ("probabilities", ["N", len(KINDS)])
    return session.run(None, {"images": pixels(files)})[0]


def by_tflite(folder: Path, files: list[bytes]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(str(folder / "model.tflite"))
    return interpreter.get_signature_runner()(images=pixels(files))["probabilities"]


@pytest.mark.parametrize(
    ("name", "read"), [("savedmodel", from_jpegs), ("onnx", by_onnx), ("tflite", by_tflite)], ids=lambda v: str(v)[:10]
)
def test_an_export_gives_what_keras_gives(
    odd_run: OddRun,
    tmp_path: Path,
    generated: list[bytes],
    name: str,
    read: Callable[[Path, list[bytes]], np.ndarray],
    capsys: pytest.CaptureFixture,
) -> None:
    if name == "onnx":
        pytest.importorskip("tf2onnx", reason="no tf2onnx: the extra onnx brings it")
    output = tmp_path / "exported"
    assert export.main([str(odd_run.run.path), f"--output={output}", f"--format={name}"]) == 0
    assert "compared with Keras on 4 generated images" in capsys.readouterr().out
    # In a SavedModel the shrinking of larger images is TensorFlow's: see the test below.
    files = [data for data in generated if min(tf.io.decode_jpeg(data).shape[:2]) <= SHORT_SIDE]
    expected = np.asarray(keras.models.load_model(odd_run.run.final)(pixels(files)))
    assert len(files) >= 8
    np.testing.assert_allclose(read(output, files), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(read(output, files[:1]), expected[:1], rtol=0, atol=1e-5)
    about = json.loads((output / "export.json").read_text())
    assert (about["version"], about["format"], about["classes"]) == (1, name, list(KINDS))
    assert (about["image_size"], about["crop_ratio"], about["short_side"]) == (IMAGE_SIZE, 0.9, SHORT_SIDE)
    assert 0 <= about["largest_difference"] <= 1e-5
    assert (output / "classes.txt").read_text().splitlines() == list(KINDS)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_evaluate_predict_and_the_saved_model_agree(
    odd_run: OddRun, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The same order of classes and the same loss, on the images that a SavedModel takes unchanged."""
    kinds = ("grey", "plain", "progressive", "small")
    for kind in kinds:
        (tmp_path / "images" / kind).mkdir(parents=True)
        (tmp_path / "images" / kind / "x.jpg").write_bytes(odd_run.files[kind].read_bytes())
    run = str(odd_run.run.path)
    assert evaluate.main([run, f"--dataset-dir={tmp_path / 'images'}", f"--json={tmp_path / 'x.json'}"]) == 0
    measured = json.loads((tmp_path / "x.json").read_text())
    assert export.main([run, f"--output={tmp_path / 'exported'}"]) == 0
    capsys.readouterr()
    assert predict.main([run, str(tmp_path / "images"), "--top=10", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    served = from_jpegs(tmp_path / "exported", [odd_run.files[kind].read_bytes() for kind in kinds])
    losses, right = [], 0
    for line, kind, probabilities in zip(lines, kinds, served, strict=True):
        predicted = {p["label"]: p["probability"] for p in line["predictions"]}
        label = list(KINDS).index(kind)
        assert list(predicted) == np.argsort(-probabilities, kind="stable").tolist()
        np.testing.assert_allclose(list(predicted.values()), probabilities[list(predicted)], atol=1e-6)
        losses.append(-np.log(predicted[label]))
        right += next(iter(predicted)) == label
    assert measured["records"] == len(kinds)
    assert measured["top1_correct"] == right
    assert measured["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_names_with_wildcards_are_names(odd_run: OddRun, tmp_path: Path, generated: list[bytes]) -> None:
    """TensorFlow takes them for patterns."""
    folder = tmp_path / "lr[1]" / "what?*"
    folder.parent.mkdir()
    assert export.main([str(odd_run.run.path), f"--output={folder}"]) == 0
    assert (folder / "saved_model.pb").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["what?*"]
    folder.rename(tmp_path / "plain")
    assert from_jpegs(tmp_path / "plain", generated[:1]).shape == (1, len(KINDS))


@pytest.fixture(scope="module")
def saved(odd_run: OddRun, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[bytes]], dict[str, np.ndarray]]:
    """The SavedModel of the run, as a function of files."""
    output = tmp_path_factory.mktemp("saved") / "exported"
    assert export.main([str(odd_run.run.path), f"--output={output}"]) == 0
    serve = tf.saved_model.load(str(output)).signatures["serving_default"]
    return lambda files: {name: value.numpy() for name, value in serve(jpeg=tf.constant(files, tf.string)).items()}


def as_format(data: bytes, name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(stream, name, **options)
    return stream.getvalue()


def in_mode(data: bytes, mode: str) -> bytes:
    """A BMP of another mode of Pillow."""
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").convert(mode).save(stream, "BMP")
    return stream.getvalue()


def test_grey_and_transparent_bmps(saved: Callable, odd_run: OddRun, generated: list[bytes]) -> None:
    """TensorFlow reads those; a palette of colours it would take for grey levels."""
    files = [in_mode(generated[0], "L"), in_mode(generated[1], "RGBA")]
    expected = np.asarray(keras.models.load_model(odd_run.run.final)(pixels(files)))
    np.testing.assert_allclose(saved(files)["probabilities"], expected, rtol=0, atol=5e-3)


def test_images_of_few_bytes_are_readable(saved: Callable) -> None:
    small = Image.new("RGB", (2, 2), (255, 0, 0))
    files = []
    for name, options in (("GIF", {}), ("WEBP", {"lossless": True})):
        stream = io.BytesIO()
        small.save(stream, name, **options)
        files.append(stream.getvalue())
    assert max(map(len, files)) < 54
    assert saved(files)["readable"].all()


def test_shrinking_is_in_the_graph(saved: Callable, odd_run: OddRun, generated: list[bytes]) -> None:
    """Of images up to three times as large as the records. Without shrinking the difference is up to 0.1."""
    rng = np.random.default_rng(5)
    files = [*generated, *(jpeg(photo(rng, i, *rng.integers(SHORT_SIDE, 3 * SHORT_SIDE, 2)), 0) for i in range(8))]
    assert sum(min(tf.io.decode_jpeg(data).shape[:2]) > SHORT_SIDE for data in files) >= 8
    expected = np.asarray(keras.models.load_model(odd_run.run.final)(pixels(files)))
    np.testing.assert_allclose(saved(files)["probabilities"], expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", ["PNG", "BMP", "GIF", "WEBP"])
def test_other_formats_give_what_predict_gives(
    saved: Callable, odd_run: OddRun, generated: list[bytes], name: str
) -> None:
    files = [as_format(data, name) for data in generated[:4]]
    expected = np.asarray(keras.models.load_model(odd_run.run.final)(pixels(files)))
    found = saved([*files, generated[4]])
    assert found["readable"].all()
    np.testing.assert_allclose(found["probabilities"][:4], expected, rtol=0, atol=5e-3)


BAD = {
    "empty": lambda data: b"",
    "text": lambda data: b"no image",
    "cut JPEG": lambda data: data[: len(data) // 2],
    "only the head of a JPEG": lambda data: data[:3],
    "cut PNG": lambda data: as_format(data, "PNG")[:90],
    "TIFF": lambda data: as_format(data, "TIFF"),
    "BMP with a palette": lambda data: in_mode(data, "P"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("places", [[0], [1], [3], [0, 1, 3], [0, 1, 2, 3]])
def test_a_bad_file_has_a_row_that_says_so(
    saved: Callable, generated: list[bytes], bad: str, places: list[int]
) -> None:
    whole = saved(generated[:4])
    assert whole["readable"].all()
    files = [BAD[bad](data) if place in places else data for place, data in enumerate(generated[:4])]
    found = saved(files)
    good = [place for place in range(4) if place not in places]
    assert found["readable"].tolist() == [place in good for place in range(4)]
    assert np.isnan(found["probabilities"][places]).all()
    np.testing.assert_allclose(found["probabilities"][good], whole["probabilities"][good], rtol=0, atol=1e-6)


def test_an_empty_batch_gives_no_row(saved: Callable) -> None:
    found = saved([])
    assert (found["probabilities"].shape, found["readable"].shape) == ((0, len(KINDS)), (0,))


@pytest.mark.parametrize("crop_ratio", [1.0, 0.875, 0.3])
def test_the_geometry_in_the_graph_is_the_plans(crop_ratio: float) -> None:
    augment, batch = AugmentSpec.evaluation(crop_ratio), BatchSpec(1, 48)
    work_of = tf.function(lambda size: evaluation_work(size, batch, augment))
    heights, widths = np.array(SIZES).T
    records = RecordUniform(0, 0, np.arange(len(SIZES)))
    planned = Work.of(augment.draw(records, heights, widths, batch.image_size), batch, augment)
    for number, (height, width) in enumerate(SIZES):
        for found, expected in zip(work_of(tf.constant([height, width])), planned, strict=True):
            np.testing.assert_array_equal(found, expected[number])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((0.5, 4), "gives other probabilities than Keras, by up to 5.0e-01; nothing was written"),
        ((float("nan"), 4), "gives other probabilities"),
        (
            ValueError("cannot convert this\nand more"),
            "demo: the converter fails, so this model cannot be exported (cannot convert this)",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_a_failed_export_leaves_nothing(
    odd_run: OddRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    result: tuple | Exception,
    message: str,
) -> None:
    def compare(*_: object) -> tuple:
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(exporters.EXPORTERS["savedmodel"], "write", lambda *_: None)
    monkeypatch.setattr(exporters.EXPORTERS["savedmodel"], "compare", compare)
    code = export.main([str(odd_run.run.path), f"--output={tmp_path / 'exported'}"])
    error = capsys.readouterr().err
    assert code == (2 if isinstance(result, OSError) else 1)
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/run", "--output=NEW"], "/no/run: no such run directory or model file"),
        (["IMAGE", "--output=NEW"], "Keras cannot load it"),
        (["RUN", "--output=FULL"], "exists and is not an empty folder; choose another --output"),
        (["RUN", "--output=IMAGE"], "exists and is not an empty folder; choose another --output"),
        (["RUN", "--output=/no/folder/x"], "cannot be created, there is no folder /no/folder"),
        (["RUN", "--output=/proc/x"], "/proc/x: cannot be written"),
        (["RUN", "--output=NEW", "--format=onnx"], "needs the package tf2onnx; `pip install onnxruntime tf2onnx`"),
        (["RUN", "--output=NEW", "--format=pdf"], "invalid choice"),
        (["SMALL", "--output=NEW", "--names-from=DATA"], "predicts 3 classes"),
        (["FLAT", "--output=NEW"], "not square RGB images"),
        (["RUN"], "--output"),
    ],
)
def test_wrong_use_gets_one_line(
    odd_run: OddRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
) -> None:
    places = {
        "RUN": odd_run.run.path,
        "IMAGE": odd_run.files["plain"],
        "NEW": tmp_path / "new",
        "FULL": odd_run.images,
        "DATA": odd_run.dataset_dir,
        "SMALL": tmp_path / "small.keras",
        "FLAT": tmp_path / "flat.keras",
    }
    if "SMALL" in arguments:
        models.build("demo", 3, 32).save(places["SMALL"])
    if "FLAT" in arguments:
        keras.Sequential([keras.Input((7,)), keras.layers.Dense(3)]).save(places["FLAT"])
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else find_spec(name))

    def filled(argument: str) -> str:
        flag, equals, value = argument.partition("=")
        return flag + equals + str(places.get(value, value)) if equals else str(places.get(flag, flag))

    try:
        code = export.main([filled(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        code = error.code
    error = capsys.readouterr().err
    assert code == 2, error
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not places["NEW"].exists()


def test_the_tool_that_compares_all_uses(
    odd_run: OddRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Short, for the long version compares 100 photos through both loaders and every export."""
    arguments = [str(odd_run.run.path), "--loaders=tfdata", "--formats=tflite"]
    assert compare_uses.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["evaluate, tfdata", "predict", "export, tflite"]
    assert all(" 10 images: " in line and line.endswith("different top-5 for 0 images") for line in lines)
    monkeypatch.setitem(compare_uses.READ, "tflite", lambda folder, jpegs, images: np.full((10, 10), 0.1))
    assert compare_uses.main(arguments) == 1


def test_mixed_precision_becomes_float32() -> None:
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        mixed = models.build("demo", 3, 32)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    model = exporters.in_float32(mixed)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert exporters.in_float32(model) is model
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(model(images), mixed(images), atol=0.02)
