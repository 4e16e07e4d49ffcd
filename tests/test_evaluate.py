"""The command line of evaluation: what it accepts, and that its number is exact."""

import json
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from kimagenet import evaluate, models
from kimagenet.inference import class_folders
from pipelines import AugmentSpec, BatchSpec, ShardSet, UserError, open_loader
from tests.helpers.data import NUM_CLASSES, TRAIN_RECORDS, VALIDATION_RECORDS
from tests.helpers.odd_run import KINDS, OddRun


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.utils.set_random_seed(1)
    path = tmp_path_factory.mktemp("model") / "model.keras"
    models.build("demo", NUM_CLASSES, 32).save(path)
    return path


@pytest.mark.parametrize(
    ("split", "records", "batch_size"), [("validation", VALIDATION_RECORDS, 10), ("train", TRAIN_RECORDS, 101)]
)
def test_counts_every_record_of_a_model_file(
    model_file: Path, tiny_dataset: Path, tmp_path: Path, split: str, records: int, batch_size: int
) -> None:
    output = tmp_path / "result.json"
    flags = [
        "--loader=tfdata",
        "--split",
        split,
        "--crop-ratio=0.7",
        f"--batch_size={batch_size}",
        "--json",
        str(output),
    ]
    assert evaluate.main([str(model_file), "--dataset-dir", str(tiny_dataset), *flags]) == 0
    found = json.loads(output.read_text())

    shards = ShardSet.open(tiny_dataset, split)
    loader = open_loader("tfdata", shards, BatchSpec(1, 32), AugmentSpec.evaluation(0.7), workers=1)
    images, labels, _ = (np.concatenate(parts) for parts in zip(*loader.epoch(0).as_numpy_iterator(), strict=True))
    ranked = np.argsort(-keras.models.load_model(model_file).predict(images, verbose=0), axis=1, kind="stable")
    assert found["records"] == records == len(labels)
    assert found["top1_correct"] == np.sum(ranked[:, 0] == labels)
    assert found["top5_correct"] == np.sum(ranked[:, :5] == labels[:, None])
    assert found["top1"] == found["top1_correct"] / records
    assert (found["version"], found["split"], found["crop_ratio"]) == (1, split, 0.7)


def test_flip_averages_each_image_and_its_mirror_image(
    model_file: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = keras.models.load_model(model_file)
    kernel = model.get_layer("Logits").kernel
    kernel.assign(kernel * 2000)  # so that it is sure of something
    model.save(tmp_path / "sure.keras")
    flags = [str(tmp_path / "sure.keras"), f"--dataset-dir={tiny_dataset}", "--loader=tfdata", "--flip"]
    found = evaluated(tmp_path / "x.json", *flags)
    assert "each image and its mirror image averaged" in capsys.readouterr().out
    shards = ShardSet.open(tiny_dataset, "validation")
    loader = open_loader("tfdata", shards, BatchSpec(1, 32), AugmentSpec.evaluation(), workers=1)
    images, labels, _ = (np.concatenate(parts) for parts in zip(*loader.epoch(0).as_numpy_iterator(), strict=True))
    plain, mirrored = (model.predict(each, verbose=0) for each in (images, images[:, :, ::-1]))
    mean = (plain + mirrored) / 2
    assert found["flip"]
    assert found["top1_correct"] == np.sum(np.argmax(mean, axis=1) == labels)
    assert found["loss"] == pytest.approx(-np.log(mean[range(len(labels)), labels]).mean(), rel=1e-4)
    assert found["loss"] != pytest.approx(-np.log(plain[range(len(labels)), labels]).mean(), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/run", "--dataset-dir=DATA"], "/no/run: no such run directory or model file"),
        (["MODEL"], "not in a run directory, so its data set is unknown; add --dataset-dir DIR"),
        (["DATA", "--dataset-dir=DATA"], "not a run directory"),
        (["MODEL", "--dataset-dir=/no/folder"], "/no/folder: no such folder"),
        (["MODEL", "--dataset-dir=DATA", "--split=test"], "no split 'test'"),
        (["DATA/dataset.json", "--dataset-dir=DATA"], "Keras cannot load it"),
        (["OTHER", "--dataset-dir=DATA"], "predicts 3 classes, the data set in DATA has 10"),
        (["MODEL", "--dataset-dir=DATA", "--json=/no/folder/x.json"], "/no/folder/x.json: cannot be written"),
        (["MODEL", "--dataset-dir=DATA", "--crop-ratio=2"], "crop"),
        (["MODEL", "--dataset-dirr=DATA"], "did you mean --dataset-dir?"),
        ([], "required"),
    ],
)
def test_wrong_use_gets_one_line(
    model_file: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
) -> None:
    other = tmp_path / "other.keras"
    if "OTHER" in arguments:
        models.build("demo", 3, 32).save(other)
    places = {"DATA": str(tiny_dataset), "MODEL": str(model_file), "OTHER": str(other)}

    def filled(text: str) -> str:
        return re.sub("|".join(places), lambda found: places[found[0]], text)

    try:
        code = evaluate.main([filled(argument) for argument in arguments] + ["--loader=tfdata"])
    except SystemExit as error:  # argparse
        code = error.code
    assert code == 2
    error = capsys.readouterr().err
    assert filled(message) in error
    assert re.fullmatch(r"error: [^\n]+\n", error)


def evaluated(output: Path, *arguments: str, code: int = 0) -> dict:
    assert evaluate.main([*arguments, f"--json={output}"]) == code
    return json.loads(output.read_text())


def test_tables_are_printed_and_written(odd_run: OddRun, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tables = ["--per-class", "--confusions=4", "--calibration"]
    found = evaluated(tmp_path / "x.json", str(odd_run.run.path), *tables, "--loader=tfdata")
    text = capsys.readouterr().out
    assert [part["name"] for part in found["per_class"]] == list(KINDS)
    assert {part["records"] for part in found["per_class"]} == {1}
    assert sum(part["top1_correct"] for part in found["per_class"]) == found["top1_correct"]
    wrong = found["records"] - found["top1_correct"]
    assert len(found["confusions"]) == min(4, wrong)
    assert 0 <= found["calibration"]["error"] <= 1
    for word in ("most often taken for", "taken for", "expected calibration error", *KINDS):
        assert word in text


def test_a_plain_folder_gives_what_its_shards_give(odd_run: OddRun, tmp_path: Path) -> None:
    """Files get the same treatment as in the builder: turned, converted, shrunk; also without validation/."""
    shards = evaluated(tmp_path / "x.json", str(odd_run.run.path), "--loader=tfdata", "--per-class", "--flip")
    for folder in (odd_run.images, odd_run.images / "validation"):
        found = evaluated(
            tmp_path / "y.json",
            str(odd_run.run.path),
            f"--dataset-dir={folder}",
            "--per-class",
            "--batch-size=3",
            "--flip",
        )
        assert found["per_class"] == shards["per_class"]
        assert found["loss"] == pytest.approx(shards["loss"], rel=1e-6)
        assert found["dataset_dir"] == str(folder)


def test_files_that_cannot_be_read_are_counted(odd_run: OddRun, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "images"
    (folder / "png").mkdir(parents=True)
    shutil.copy(odd_run.files["png"], folder / "png")
    (folder / "png" / "a.txt").write_text("no image")
    (folder / "png" / ".hidden").write_text("no image")
    model = str(odd_run.run.path)
    found = evaluated(tmp_path / "x.json", model, f"--dataset-dir={folder}", code=1)
    assert found["records"] == 1
    assert found["rejected"] == [{"file": f"{folder}/png/a.txt", "reason": "not an image of a known format"}]
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == f"{folder}/png/a.txt: not an image of a known format"
    assert errors[1].startswith("1 of 2 files could not be read")
    (folder / "png" / "png.png").unlink()
    assert evaluate.main([model, f"--dataset-dir={folder}"]) == 2
    assert "none of its files can be read" in capsys.readouterr().err
    (folder / "dog").mkdir()
    assert evaluate.main([model, f"--dataset-dir={folder}"]) == 2
    assert f"{folder}/dog: the model has no class of this name" in capsys.readouterr().err


def test_a_bare_model_takes_the_folders_in_order(
    odd_run: OddRun, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = tmp_path / "bare.keras"
    shutil.copy(odd_run.run.final, bare)
    found = evaluated(tmp_path / "x.json", str(bare), f"--dataset-dir={odd_run.images}", "--per-class")
    assert "using the 10 folders in alphabetical order" in capsys.readouterr().err
    assert [part["name"] for part in found["per_class"]] == list(KINDS)


def test_folders_are_found_by_name_or_wnid(tmp_path: Path) -> None:
    """Two classes of ImageNet are called crane, and only their wnids tell them apart."""
    classes, wnids = ("tench, Tinca tinca", "own", "crane", "crane"), ("n01440764", None, "n02012849", "n03126707")
    for name in ("n01440764", "own", "n02012849", "n03126707"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").touch()
    labels = {file.path.parent.name: file.label for file in class_folders.list_images(tmp_path, classes, wnids)}
    assert labels == {"n01440764": 0, "own": 1, "n02012849": 2, "n03126707": 3}
    with pytest.raises(UserError, match="n03126707: the model has no class"):
        class_folders.list_images(tmp_path, classes[:3], wnids[:3])
    (tmp_path / "crane").mkdir()
    with pytest.raises(UserError, match="crane: the model has no class of this name"):
        class_folders.list_images(tmp_path, classes, wnids)
    assert class_folders.find(tmp_path, "validation") == tmp_path
    (tmp_path / "val").mkdir()
    assert class_folders.find(tmp_path, "validation") is None  # no class folders in it
    (tmp_path / "val" / "own").mkdir()
    assert class_folders.find(tmp_path, "validation") == tmp_path / "val"
