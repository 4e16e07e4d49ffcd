"""Classes of a model and a data set are matched by name or wnid, never by number alone. Without TensorFlow."""

from pathlib import Path

import pytest

from kimagenet.inference import fine_tuning
from kimagenet.inference.class_folders import list_images
from kimagenet.inference.class_match import Classes, numbers_in_model
from kimagenet.inference.trained import Trained, class_names
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines import UserError
from pipelines.shards.dataset import ClassInfo, DatasetInfo
from tests.helpers.messages import messages

MODEL, DATA = Path("m.keras"), Path("data")


def numbers(model: Classes, data: Classes) -> list[int]:
    return numbers_in_model(model, data, MODEL, DATA).tolist()


def write_dataset(folder: Path, names: list[str], wnids: list[str | None] | None = None) -> DatasetInfo:
    parts = zip(names, wnids or [None] * len(names), strict=True)
    classes = [ClassInfo(name=name, wnid=wnid) for name, wnid in parts]
    info = DatasetInfo(label_base=0, classes=classes, splits={})
    folder.mkdir()
    info.save(folder)
    return info


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        (Classes(["a", "b", "c"]), Classes(["a", "b", "c"]), [0, 1, 2]),
        (Classes(["a", "b", "c"]), Classes(["c", "a", "b"]), [2, 0, 1]),
        # wnids decide, although the names differ or are the same
        (Classes(["tench", "crane"], ["n1", "n2"]), Classes(["Kranich", "Schleie"], ["n2", "n1"]), [1, 0]),
        (Classes(["crane", "crane"], ["n1", "n2"]), Classes(["crane", "crane"], ["n2", "n1"]), [1, 0]),
        # only one side has wnids, or a folder is named after a wnid
        (Classes(["a", "b"]), Classes(["b", "a"], ["n2", "n1"]), [1, 0]),
        (Classes(["n1", "n2"]), Classes(["b", "a"], ["n2", "n1"]), [1, 0]),
        (Classes(["a", "own"], ["n1", None]), Classes(["own", "a"], [None, "n1"]), [1, 0]),
        # composed and decomposed letters, as macOS stores them
        (Classes(["Bär", "café"]), Classes(["café", "Bär"]), [1, 0]),
        # numbers are names too
        (Classes(["0", "1", "10", "2"]), Classes(["0", "1", "2", "10"]), [0, 1, 3, 2]),
    ],
)
def test_another_order_is_mapped(model: Classes, data: Classes, expected: list[int]) -> None:
    assert numbers(model, data) == expected


@pytest.mark.parametrize(
    ("model", "data", "difference"),
    [
        (Classes(["a", "b"]), Classes(["a", "z"]), r"only the model has b; only the data set has z"),
        (Classes(["a", "b"], ["n1", "n2"]), Classes(["a", "b"], ["n1", "n3"]), r"only the model has n2"),
        (Classes(["crane", "crane", "a"]), Classes(["a", "crane", "crane"]), r"same name, in another order"),
        (Classes(list("abcde")), Classes(list("vwxyz")), r"only the model has a, b, c …;"),
    ],
)
def test_other_classes_are_refused(model: Classes, data: Classes, difference: str) -> None:
    with pytest.raises(UserError, match=rf"^m\.keras: predicts other classes than .* in data \(.*{difference}"):
        numbers(model, data)


@pytest.mark.parametrize(
    ("model", "whose"),
    [(Classes([]), "the model"), (Classes(["class 1", "class 2"]), "the model"), (Classes(["a", "b"]), "the data set")],
)
def test_unknown_names_are_reported(model: Classes, whose: str, caplog: pytest.LogCaptureFixture) -> None:
    data = Classes(["b", "a"]) if whose == "the model" else Classes(["class 0", "class 1"])
    with messages("kimagenet", caplog):
        assert numbers(model, data) == [0, 1]
    assert f"the class names of {whose} are not known" in caplog.text
    assert "compared by number" in caplog.text


def test_names_from_another_data_set_get_the_models_order(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", ["Schleie", "Kranich", "a"], ["n3", "n2", "n1"])
    model = Trained(MODEL, classes=("x", "y", "z"), wnids=("n1", "n2", "n3"))
    assert class_names(model, 3, tmp_path / "data") == ("a", "Kranich", "Schleie")
    assert class_names(Trained(MODEL), 3, tmp_path / "data") == ("Schleie", "Kranich", "a")
    with pytest.raises(UserError, match="predicts other classes"):
        class_names(Trained(MODEL, classes=("x", "y", "z")), 3, tmp_path / "data")


def test_a_resumed_run_keeps_its_classes_also_by_force(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.begin(Recipe(), {"classes": ["crane", "crane"], "wnids": ["n1", "n2"], "dataset_dir": "data"})
    same = write_dataset(tmp_path / "same", ["crane", "crane"], ["n1", "n2"])
    fine_tuning.check_classes(run, same, DATA)
    swapped = write_dataset(tmp_path / "swapped", ["crane", "crane"], ["n2", "n1"])
    with pytest.raises(UserError, match="or in another order; start a new run from its model"):
        fine_tuning.check_classes(run, swapped, DATA)
    more = write_dataset(tmp_path / "more", ["crane", "crane", "a"])
    with pytest.raises(UserError, match="began with other classes"):
        fine_tuning.check_classes(run, more, DATA)
    (tmp_path / "old").mkdir()
    RunDirectory(tmp_path / "old").info.write_text('{"version": 1, "classes": 5}')
    fine_tuning.check_classes(RunDirectory(tmp_path / "old"), more, DATA)


@pytest.mark.slow  # imports TensorFlow
def test_many_class_folders_are_matched_in_time(tmp_path: Path) -> None:
    """21,841 classes took a search through all names for each folder."""
    (tmp_path / "n00021840").mkdir()
    (tmp_path / "n00021840" / "x.jpg").touch()
    names = [f"n{number:08d}" for number in range(21_841)]
    assert [file.label for file in list_images(tmp_path, names)] == [21_840]
