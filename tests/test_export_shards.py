"""A data set that is exported and built again is the same; other projects' packages read what is exported."""

import json
import shutil
from pathlib import Path

import pytest

from kimagenet.commands import export_shards
from pipelines import ShardSet, UserError
from pipelines.building.build import build
from pipelines.building.export import FORMATS, Format
from pipelines.building.export import export_shards as export
from pipelines.building.sources import Scratch, open_source
from pipelines.shards.dataset import DatasetInfo
from tests.helpers.builds import CLASSES, OPTIONS
from tests.helpers.writers import package


@pytest.fixture
def shards(built: Path, tmp_path: Path) -> Path:
    """A copy of the built data set with two records in quarantine."""
    folder = shutil.copytree(built, tmp_path / "shards")
    info = DatasetInfo.load(folder)
    train = info.splits["train"].model_copy(update={"quarantine": [3, 70]})
    info.model_copy(update={"splits": {**info.splits, "train": train}}).save(folder)
    return folder


def stored(folder: Path, split: str) -> list[tuple[bytes, int]]:
    """Image and class of each record that is not in quarantine, in order."""
    shards = ShardSet.open(folder, split)
    images = [shards.read(record) for record in shards.usable.tolist()]
    return [(image.encoded, image.label - shards.label_base) for image in images]


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_exported_can_be_built_again(
    shards: Path, tmp_path: Path, form: Format, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    output = tmp_path / "exported"
    assert export_shards.main([str(shards), "--output", str(output), "--format", form, "--workers=1"]) == 0
    said = f"{output}: 130 train records, 15 validation records in 3 files; 2 quarantined records are left out"
    assert said in capsys.readouterr().out
    assert not list(output.glob(".*"))
    source = open_source(output, Scratch(tmp_path / "scratch"))
    assert source.rejected == []
    build(source, tmp_path / "again", OPTIONS)
    for split in ("train", "validation"):
        assert sorted(stored(tmp_path / "again", split)) == sorted(stored(shards, split))
    assert DatasetInfo.load(tmp_path / "again").classes == DatasetInfo.load(shards).classes


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_data_set_gives_the_same_bytes(shards: Path, tmp_path: Path, form: Format) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    for number in range(2):
        export(shards, tmp_path / f"{number}", form, workers=1 + number)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / f"{n}").iterdir()} for n in range(2))
    assert first == second


def test_a_folder_that_is_not_empty_is_refused(shards: Path) -> None:
    with pytest.raises(UserError, match="the folder is not empty; choose another output folder"):
        export(shards, shards, "webdataset")


@pytest.mark.slow
def test_webdataset_reads_the_tars(shards: Path, tmp_path: Path) -> None:
    wds = package("webdataset")
    export(shards, tmp_path / "out", "webdataset")
    names = (tmp_path / "out" / "classnames.txt").read_text().splitlines()
    paths = sorted(str(path) for path in (tmp_path / "out").glob("train-*.tar"))
    found = [(item["jpg"], int(item["cls"])) for item in wds.WebDataset(paths, shardshuffle=False)]
    assert found == stored(shards, "train")
    assert names == sorted(CLASSES)


@pytest.mark.slow
def test_hugging_face_reads_the_parquet_files(shards: Path, tmp_path: Path) -> None:
    datasets = package("datasets")
    export(shards, tmp_path / "out", "parquet")
    files = {split: str(tmp_path / "out" / f"{split}-*.parquet") for split in ("train", "validation")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    raw = loaded["train"].cast_column("image", datasets.Image(decode=False))
    assert [(item["image"]["bytes"], item["label"]) for item in raw] == stored(shards, "train")
    assert loaded["train"].features["label"].names == sorted(CLASSES)
    assert json.dumps(loaded["validation"][0]["image"].size)  # it decodes
