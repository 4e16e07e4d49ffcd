"""Images in folders: train/<class>/ beside validation/<class>/, or beside ImageNet's validation images, unsorted."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pipelines.building.sources import imagenet
from pipelines.building.sources.source import Found, Place, Rejected, Source, collect
from pipelines.errors import UserError

SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val")}
LOOSE = "lies in no class folder"
Labels = Callable[[], Mapping[str, str]]


def find_splits(root: Path) -> dict[str, Path]:
    """The folders of train and, if there is one, of validation; empty if there is no train."""
    found = {
        split: next((root / n for n in names if (root / n).is_dir()), None) for split, names in SPLIT_FOLDERS.items()
    }
    return {split: folder for split, folder in found.items() if folder} if found["train"] else {}


def is_flat(folder: Path) -> bool:
    """Whether a folder holds ImageNet's validation images unsorted."""
    return any(imagenet.VALIDATION_NAME.fullmatch(item.name) for item in _visible(folder))


def read_folders(layout: str, root: Path, folders: Mapping[str, Path], labels: Labels) -> Source:
    """Lists train/<class>/* and validation/<class>/* or validation/*, for which `labels` gives file name -> class."""
    names = sorted(item.name for item in _visible(folders["train"]) if item.is_dir())
    if not names:
        raise UserError(f"{folders['train']}: no class folders; images belong in {folders['train'].name}/<class>/")
    splits = {"train": _list_split(root, folders["train"], names, {}, flat=False)}
    if folder := folders.get("validation"):
        flat = is_flat(folder)
        splits["validation"] = _list_split(root, folder, names, labels() if flat else {}, flat)
    return collect(layout, root, splits, names)


def _list_split(
    root: Path, folder: Path, classes: list[str], labels: Mapping[str, str], flat: bool
) -> Iterator[Found | Rejected]:
    known = set(classes)
    place = Place(str(folder), str(folder.relative_to(root)))
    for item in _visible(folder):
        if item.is_dir() and item.name in known:
            yield from _list_folder(root, folder / item.name, item.name)
        elif item.is_dir() and not flat:
            raise UserError(f"{item.path}: no such class in train; rename or remove the folder")
        else:
            yield _file(item, place, labels.get(item.name, ""), "no label is known for this name" if flat else LOOSE)


def _list_folder(root: Path, folder: Path, class_name: str) -> Iterator[Found | Rejected]:
    place = Place(str(folder), str(folder.relative_to(root)))
    for item in _visible(folder):
        yield _file(item, place, class_name)


def _file(item: os.DirEntry[str], place: Place, class_name: str, unknown: str = LOOSE) -> Found | Rejected:
    found = Found(class_name, place, item.name)
    if item.is_file():  # through links, which in a folder are the user's own
        return found if class_name else found.rejected(unknown)
    if item.is_dir():
        return found.rejected("Is a directory")
    return found.rejected("the link leads nowhere" if item.is_symlink() else "not a regular file")


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return [item for item in items if not item.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
