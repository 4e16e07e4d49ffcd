"""The command line of evaluation: what it accepts, and that its number is exact."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest

from kimagenet import evaluate, models
from pipelines import AugmentSpec, BatchSpec, ShardSet, open_loader
from tests.data import NUM_CLASSES, TRAIN_RECORDS, VALIDATION_RECORDS


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/run", "--dataset-dir=DATA"], "/no/run: no such run directory or model file"),
        (["MODEL"], "--dataset-dir is needed"),
        (["DATA", "--dataset-dir=DATA"], "not a run directory"),
        (["MODEL", "--dataset-dir=/no/folder"], "/no/folder: no such folder"),
        (["MODEL", "--dataset-dir=DATA", "--split=test"], "no split 'test'"),
        (["DATA/dataset.json", "--dataset-dir=DATA"], "Keras cannot load it"),
        (["OTHER", "--dataset-dir=DATA"], "knows 3 classes, the data set in DATA has 10"),
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
