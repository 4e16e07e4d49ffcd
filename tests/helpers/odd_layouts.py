"""Folders as people have them, complete, incomplete and of other programs, and what commands say about each."""

import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from pipelines.building.sources import Scratch, recognize
from pipelines.errors import UserError
from pipelines.shards.finding import find_shards
from pipelines.shards.shard_set import ShardSet
from tests.helpers.data import jpeg, photo

FOLDER = "DIR"


def empty(*names: str) -> Callable[[Path], None]:
    """A function that makes empty files; a name that ends in / is a folder."""

    def make(root: Path) -> None:
        for name in names:
            path = root / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.touch()

    return make


def tars(*members: str) -> Callable[[Path], None]:
    """A function that makes a-000000.tar with these members."""

    def make(root: Path) -> None:
        import numpy as np

        picture = jpeg(photo(np.random.default_rng(0), 0, 9, 9))
        with tarfile.open(root / "a-000000.tar", "w") as tar:
            for name in members:
                data = picture if name.endswith("jpg") else b"0"
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

    return make


def lines(name: str, *rows: str) -> Callable[[Path], None]:
    """A function that makes a text file."""

    def make(root: Path) -> None:
        (root / name).write_text("".join(f"{row}\n" for row in rows))

    return make


# What the folder has -> a function that makes it.
LAYOUTS: dict[str, Callable[[Path], None]] = {
    "`train/<class>/`, `validation/<class>/`": empty("train/a/1.jpg", "train/b/1.jpg", "validation/a/2.jpg"),
    "`<class>/`": empty("rose/1.jpg", "tulip/1.jpg", "LICENSE.txt"),
    "`flowers/<class>/`": empty("flowers/rose/1.jpg", "flowers/tulip/1.jpg"),
    "ImageNet's tars": empty("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    "a tar for each class": empty("train/n01440764.tar", "train/n01443537.tar"),
    "Parquet": empty("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    "Parquet, one file missing": empty("data/train-00000-of-00002.parquet"),
    "WebDataset": empty("a-train-0000.tar", "a-train-0001.tar", "a-validation-0000.tar"),
    "tars of images without labels": tars("1.jpg", "2.jpg"),
    "a list of files that are missing": lines("train.csv", "path,label", "a.jpg,cat"),
    "a list without labels": lines("train.csv", "id,url", "1,a.jpg"),
    "keras_imagenet's shards": empty("train-00000-of-00002", "train-00001-of-00002"),
    "shards of tensorflow-datasets": empty("pets/1.0.0/pets-train.tfrecord-00000-of-00001", "pets/1.0.0/features.json"),
    "an unfinished data set of theirs": empty("pets/1.0.0.incompleteA1B2/pets-train.tfrecord"),
    "TFRecord files without numbers": empty("a.tfrecord", "b.tfrecord"),
    "a data set of kimagenet, one folder below": empty("shards/dataset.json", "shards/train-00000-of-00001"),
    "an unfinished build": empty(".build/plan.json", ".build/train-00000-of-00002.json"),
    "loose images": empty("1.jpg", "2.jpg", "3.jpg"),
    "only validation images": empty("validation/a/1.jpg", "validation/b/1.jpg"),
    "Arrow files of `save_to_disk`": empty("train/data-00000-of-00001.arrow", "dataset_dict.json"),
    "MXNet's RecordIO": empty("train.rec", "train.idx"),
    "MosaicML's shards": empty("train/index.json", "train/shard.00000.mds"),
    "COCO": empty("annotations/instances_train2017.json", "train2017/1.jpg"),
    "a ZIP file": empty("photos.zip"),
    "nothing": empty(),
}


def said(make: Callable[[Path], None], root: Path) -> tuple[str, str, str]:
    """What `build_shards`, `build_index` and a training say about a folder, with `FOLDER` for its path."""
    make(root)

    def build() -> str:
        layout = recognize(root)
        if any(path.stat().st_size for path in root.rglob("*") if path.is_file()):  # what is empty is not read
            layout.read(Scratch(root / ".scratch"))
        return f"takes it: {layout.text}"

    def index() -> str:
        return f"takes it: {', '.join(find_shards(root))}"

    def train() -> str:
        return f"takes it: {ShardSet.open(root, 'train').num_records} records"

    return _line(build, root), _line(index, root), _line(train, root)


def _line(call: Callable[[], str], root: Path) -> str:
    try:
        text = call()
    except UserError as error:
        text = str(error)
    text = text.replace(str(root), FOLDER)
    return re.sub(r"[^\s`]*/python -m", "python -m", text)
