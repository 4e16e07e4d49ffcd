"""Says what a folder holds, by the names of its files, so that an error about a missing layout names the one there is.

No file is opened. Of a large folder only some names are read.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pipelines.shards import remedies
from pipelines.shards.shard_names import shards_among

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl")
LIST_NAMES = ("train", "training", "validation", "valid", "val", "test", "metadata", "labels", "list")  # in lower case
WANTED = (
    "use class folders (train/<class>/ or <class>/), a list (a .csv or .jsonl file with path and label), Parquet, "
    "WebDataset tars, ImageNet's tars, or TFRecord shards"
)
_MOST_NAMES = 20_000  # of a folder
_MOST_FOLDERS = 10  # that are looked into
_SHOWN = 2
_VALIDATION = re.compile(r"^(val|valid|validation|test)\b")
_SPLITS = ("train", "validation", "val", "valid", "test")
_IMAGENET_TAR = re.compile(r"ILSVRC2012|val_images|n\d{8}\.tar")
_PREPARE = "write them as class folders, Parquet or WebDataset"


class Contents(NamedTuple):
    """What a folder holds.

    Attributes:
        what: for messages: "images in class folders (cat/, dog/)".
        remedy: what to do with it.
    """

    what: str
    remedy: str


def look(path: Path) -> Contents:
    """Looks at a folder, and into its folders if it holds nothing itself."""
    root = _Folder(path)
    if found := _known(root):
        return found
    inner = [folder for sub in root.subfolders for folder in (sub, *sub.subfolders)]
    below = [(folder, found) for folder in inner if (found := _known(folder))]
    if training := [
        (folder, found) for folder, found in below if not _VALIDATION.search(str(folder.path.relative_to(path)))
    ]:
        folder, found = training[0]
        more = f", and more in {_count(len(training) - 1, 'other folder')}" if len(training) > 1 else ""
        return Contents(f"{found.what} in {folder.path.relative_to(path)}/{more}", found.remedy)
    if below:
        folder, found = below[0]
        what = f"only validation images: {found.what} in {folder.path.relative_to(path)}/"
        return Contents(what, f"add the training images; {WANTED}")
    for look_for in (_other_format, _loose_images):
        for folder in (root, *inner):
            if found := look_for(folder, path):
                return found
    if not (root.files or root.folders):
        return Contents("no files", WANTED)
    names = [*(f"{name}/" for name in root.folders), *root.files]
    return Contents(f"files that this project does not know ({_some(names)})", WANTED)


@dataclass(frozen=True)
class _Folder:
    path: Path

    @cached_property
    def _names(self) -> tuple[list[str], list[str]]:
        files: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(self.path) as items:
                for item in islice(items, _MOST_NAMES):
                    if not item.name.startswith("."):
                        (folders if item.is_dir() else files).append(item.name)
        except OSError:
            pass
        return sorted(files), sorted(folders)

    @property
    def files(self) -> list[str]:
        return self._names[0]

    @property
    def folders(self) -> list[str]:
        return self._names[1]

    @cached_property
    def subfolders(self) -> "list[_Folder]":
        return [_Folder(self.path / name) for name in self.folders[:_MOST_FOLDERS]]

    def with_suffix(self, *suffixes: str) -> list[str]:
        return [name for name in self.files if name.lower().endswith(suffixes)]

    @cached_property
    def class_folders(self) -> list[str]:
        """The folders that have images."""
        return [sub.path.name for sub in self.subfolders if sub.images]

    @cached_property
    def images(self) -> list[str]:
        return self.with_suffix(*IMAGE_SUFFIXES)


def _known(folder: _Folder) -> Contents | None:
    """What a command of this project takes."""
    path = folder.path
    shards = shards_among(folder.files)
    if "dataset.json" in folder.files:
        if shards:
            return Contents("a data set of shards (dataset.json)", f"choose {remedies.quoted(path)}")
        again = f"build them again with {remedies.build_shards('FOLDER', 'SHARDS')}"
        return Contents("a dataset.json without its shards", f"copy the shards that belong to it, or {again}")
    if (path / ".build" / "plan.json").is_file():
        return Contents("an unfinished build", "repeat the command of that build, or remove the folder")
    if shards:
        what = f"{_count(len(shards), 'TFRecord shard')} ({_some(sorted({shard.pattern for shard in shards}))})"
        return Contents(f"{what} without dataset.json", f"run {remedies.build_index(path)}")
    for look_for_source in _SOURCES:
        if what := look_for_source(folder):
            return Contents(what, f"build shards with {remedies.build_shards(path, 'SHARDS')}")
    return None


def _imagenet(folder: _Folder) -> str:
    tars = [
        name for name in folder.files if re.fullmatch(r"ILSVRC2012_img_train\.tar|train_images_\d+\.tar(\.gz)?", name)
    ]
    kaggle = (folder.path / "ILSVRC/Data/CLS-LOC/train").is_dir() or (folder.path / "Data/CLS-LOC/train").is_dir()
    return f"ImageNet's tars ({_some(tars)})" if tars else "ImageNet in Kaggle's folders" * kaggle


def _split_folders(folder: _Folder) -> str:
    train = _Folder(folder.path / "train")
    if "train" in folder.folders and train.class_folders:
        return f"images in class folders ({_some([f'train/{name}/' for name in train.class_folders])})"
    return ""


def _one_folder(folder: _Folder) -> str:
    classes = folder.class_folders
    if len(classes) < 2 or set(folder.folders) & set(_SPLITS):
        return ""
    return f"images in class folders ({_some([f'{name}/' for name in classes])})"


def _parquet(folder: _Folder) -> str:
    names = folder.with_suffix(".parquet")
    return f"{_count(len(names), 'Parquet file')} ({_some(names)})" if names else ""


def _webdataset(folder: _Folder) -> str:
    names = [name for name in folder.with_suffix(".tar", ".tar.gz") if not _IMAGENET_TAR.match(name)]
    return f"{_count(len(names), 'tar')} ({_some(names)})" if names else ""


def _lists(folder: _Folder) -> str:
    names = [name for name in folder.with_suffix(*LIST_SUFFIXES) if name.lower().split(".")[0] in LIST_NAMES]
    return f"lists of images ({_some(names)})" if names else ""


_SOURCES: tuple[Callable[[_Folder], str], ...] = (
    _imagenet,
    _split_folders,
    _parquet,
    _webdataset,
    _lists,
    _one_folder,
)

# Formats of others: how their files are named, what they are, and how to get what this project takes.
_OTHERS: tuple[tuple[str, str, str], ...] = (
    (r".*\.incomplete\w*", "a data set that tensorflow-datasets has not finished", "prepare it again"),
    (r".*array_record.*", "ArrayRecord shards", "prepare the data set again with the file format tfrecord"),
    (r".*\.riegeli.*", "Riegeli shards", "prepare the data set again with the file format tfrecord"),
    (r".*\.tfrec(ord)?s?", "TFRecord files without numbers", "name them train-00000-of-00002 and so on"),
    (r".*\.arrow", "Arrow files, as `save_to_disk` writes them", "write Parquet with `Dataset.to_parquet`"),
    (r".*\.rec", "MXNet's RecordIO files", _PREPARE),
    (r".*\.beton", "FFCV's files", _PREPARE),
    (r".*\.mds(\.zstd)?", "MosaicML's shards", _PREPARE),
    (r"chunk-\d+-\d+\.bin", "LitData's chunks", _PREPARE),
    (r".*\.(mdb|lmdb)", "an LMDB", _PREPARE),
    (r".*\.(h5|hdf5)", "HDF5 files", _PREPARE),
    (r".*\.(npy|npz)", "NumPy arrays", _PREPARE),
    (r"(data|test)_batch(_\d|\.bin)?|data_batch_\d\.bin", "CIFAR's batches", _PREPARE),
    (r".*-idx[13]-ubyte(\.gz)?", "MNIST's files", _PREPARE),
    (r".*\.(zip|7z|rar|tgz)|.*\.tar\.(bz2|xz|zst)", "compressed archives", "unpack them"),
    (r"n\d{8}\.tar", "a tar for each class of ImageNet", "unpack each into train/<class>/"),
    (r"ILSVRC2012_img_val\.tar|val_images\.tar(\.gz)?", "only validation images", "add the training images"),
    (r"instances_\w+\.json", "annotations of COCO, which has boxes and no classes of images", _PREPARE),
)


def _other_format(folder: _Folder, root: Path) -> Contents | None:
    """A format that this project does not take."""
    names = [*folder.files, *folder.folders]
    for pattern, what, remedy in _OTHERS:
        if found := [name for name in names if re.fullmatch(pattern, name)]:
            return Contents(f"{what} ({_some_of(folder, root, found)})", remedy)
    return None


def _loose_images(folder: _Folder, root: Path) -> Contents | None:
    if not folder.images:
        return None
    what = f"{_count(len(folder.images), 'image')} without class folders ({_some_of(folder, root, folder.images)})"
    return Contents(what, "put them into a folder for each class, or write a list (labels.csv with path and label)")


def _some_of(folder: _Folder, root: Path, names: Sequence[str]) -> str:
    """Some names, with their folder."""
    return _some([str((folder.path / name).relative_to(root)) for name in names])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", …" * (len(names) > _SHOWN)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number > 1)}"
