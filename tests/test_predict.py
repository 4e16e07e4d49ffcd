"""predict: the pixels of an evaluation, names and probabilities for files, folders and lists."""

import io
import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from kimagenet import models, predict
from pipelines import AugmentSpec, BatchSpec, ShardSet, open_loader
from pipelines.images import ImageReader
from pipelines.loaders import dali
from tests.helpers.odd_run import IMAGE_SIZE, KINDS, SHORT_SIDE, OddRun
from tests.helpers.programs import run_program

GREY_LEVEL = 2 / 255
# tf.data decodes with the same library and draws with the same code; DALI decodes and rounds in its own way.
TOLERANCE = {"tfdata": 0.0, "dali": 1.6 * GREY_LEVEL}


def pixels(odd_run: OddRun) -> np.ndarray:
    reader = ImageReader(BatchSpec(1, IMAGE_SIZE), AugmentSpec.evaluation(0.9), SHORT_SIDE)
    return np.stack([reader.image(path) for path in odd_run.files.values()])


def predicted(capsys: pytest.CaptureFixture) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("loader", TOLERANCE)
def test_a_file_becomes_the_pixels_of_its_record(odd_run: OddRun, loader: str) -> None:
    """Files that the builder keeps, and those that it turns, converts or shrinks."""
    if loader == "dali" and (problem := dali.unavailable("cpu")):
        pytest.skip(f"no DALI: {problem}")
    shards = ShardSet.open(odd_run.dataset_dir, "validation")
    with open_loader(
        loader, shards, BatchSpec(len(KINDS), IMAGE_SIZE), AugmentSpec.evaluation(0.9), device="cpu"
    ) as opened:
        images, labels, _ = next(opened.batches(0))
    expected = pixels(odd_run)[labels.numpy()]
    np.testing.assert_allclose(images.numpy(), expected, rtol=0, atol=TOLERANCE[loader])


def test_probabilities_are_the_models(odd_run: OddRun, capsys: pytest.CaptureFixture) -> None:
    files = [str(path) for path in odd_run.files.values()]
    assert predict.main([str(odd_run.run.path), *files, "--json", "--top=3"]) == 0
    lines = predicted(capsys)
    expected = np.asarray(keras.models.load_model(odd_run.run.final)(pixels(odd_run)))
    assert [line["file"] for line in lines] == files
    for line, probabilities in zip(lines, expected, strict=True):
        best = np.argsort(-probabilities, kind="stable")[:3]
        assert line["version"] == 1
        assert [p["label"] for p in line["predictions"]] == best.tolist()
        assert [p["class"] for p in line["predictions"]] == [list(KINDS)[label] for label in best]
        np.testing.assert_allclose([p["probability"] for p in line["predictions"]], probabilities[best], rtol=1e-5)


def test_a_table_of_a_folder_and_a_list(
    odd_run: OddRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A folder by name and depth, without what a dot hides; a list on stdin, which may be empty lines too."""
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for place in ("z.jpg", "b/y.jpg", ".x.jpg", ".hidden/w.jpg"):
        (tmp_path / place).write_bytes(odd_run.files["plain"].read_bytes())
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{odd_run.files['png']}\n\n{odd_run.files['exif']}"))
    assert predict.main([str(odd_run.run.final), str(tmp_path), "-", "--top=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    wanted = [tmp_path / "z.jpg", tmp_path / "b/y.jpg", odd_run.files["png"], odd_run.files["exif"]]
    assert lines[::3] == [str(path) for path in wanted]
    assert lines[1] == lines[4]
    share, name = lines[1].split()
    assert name in KINDS
    assert 10 < float(share.rstrip("%")) <= 100


def test_files_that_cannot_be_read_are_named(odd_run: OddRun, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text, torn = tmp_path / "text.jpg", tmp_path / "torn.jpg"
    text.write_text("no image")
    torn.write_bytes(odd_run.files["plain"].read_bytes()[:700])
    model, good = str(odd_run.run.path), str(odd_run.files["plain"])
    assert predict.main([model, str(text), good, str(torn), "--json"]) == 1
    captured = capsys.readouterr()
    lines = {line["file"]: line for line in map(json.loads, captured.out.splitlines())}
    assert len(lines[good]["predictions"]) == 5
    assert lines[str(text)]["error"] == "not an image of a known format"
    assert "truncated" in lines[str(torn)]["error"]
    assert captured.err.splitlines()[0] == f"error: {text}: not an image of a known format"
    assert predict.main([model, str(text)]) == 2
    assert capsys.readouterr().out == ""


def test_classes_without_names_are_numbers_or_those_of_a_data_set(
    odd_run: OddRun, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare, other = tmp_path / "bare.keras", tmp_path / "other.keras"
    bare.write_bytes(odd_run.run.final.read_bytes())
    models.build("demo", 3, 32).save(other)
    flags = [str(odd_run.files["plain"]), "--top=1", "--json"]
    found = []
    for more in ([], [f"--names-from={odd_run.dataset_dir}"]):
        assert predict.main([str(bare), *flags, *more]) == 0
        found.append(predicted(capsys)[0]["predictions"][0])
    assert found[0]["class"] == str(found[0]["label"])
    assert found[1]["class"] == list(KINDS)[found[0]["label"]]
    assert predict.main([str(other), *flags, f"--names-from={odd_run.dataset_dir}"]) == 2
    assert "predicts 3 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "/no/image.jpg"], "/no/image.jpg: no such file or folder"),
        (["/no/run", "IMAGE"], "/no/run: no such run directory or model file"),
        (["IMAGE", "IMAGE"], "Keras cannot load it"),
        (["RUN", "EMPTY"], "there is no file in it"),
        (["RUN", "IMAGE", "--checkpoint=best"], "best.keras: not written yet"),
        (["RUN", "IMAGE", "--top=0"], "--top"),
        (["RUN", "IMAGE", "--crop-ratio=2"], "center_crop"),
        (["RUN"], "required"),
    ],
)
def test_wrong_use_gets_one_line(
    odd_run: OddRun, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    places = {"RUN": odd_run.run.path, "IMAGE": odd_run.files["plain"], "EMPTY": tmp_path}
    try:
        code = predict.main([str(places.get(argument, argument)) for argument in arguments])
    except SystemExit as error:  # argparse
        code = error.code
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_help_imports_no_tensorflow() -> None:
    for name in ("evaluate", "predict", "export", "doctor"):
        done = run_program("without_tensorflow", f"kimagenet.{name}", "--help")
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 500, name
