"""Images in folders: train/<class>/ and validation/<class>/, or ImageNet's validation images in one folder."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pipelines.building.sources import imagenet
from pipelines.building.sources.source import Found, Place, RejectedFile, Source, collect
from pipelines.errors import UserError

SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val")}
LOOSE = "not in a class folder"
Labels = Callable[[], Mapping[str, str]]


def find_splits(root: Path) -> dict[str, Path]:
    """The folders of train and, if it exists, of validation; empty if there is no train."""
    found = {
        split: next((root / n for n in names if (root / n).is_dir()), None) for split, names in SPLIT_FOLDERS.items()
    }
    return {split: folder for split, folder in found.items() if folder} if found["train"] else {}


def is_flat(folder: Path) -> bool:
    """Whether a folder has ImageNet's validation images without class folders."""
    return any(imagenet.VALIDATION_NAME.fullmatch(item.name) for item in _visible(folder))


def read_folders(layout: str, root: Path, folders: Mapping[str, Path], labels: Labels) -> Source:
    """Lists train/<class>/* and, if there is one, validation/<class>/* or validation/*.

    Args:
        layout: a description of the layout, one line.
        root: the folder that paths are relative to.
        folders: the folder of each split.
        labels: gives file name -> class of validation images that are not in class folders.

    Returns:
        The source.

    Raises:
        UserError: there are no class folders, or training does not have a class of validation.
    """
    names = sorted(item.name for item in _visible(folders["train"]) if item.is_dir())
    if not names:
        remedy = f"put the images into {folders['train'].name}/<class>/"
        raise UserError("no class folders", path=folders["train"], remedy=remedy)
    splits = {"train": _list_split(root, folders["train"], names, {}, flat=False)}
    if folder := folders.get("validation"):
        flat = is_flat(folder)
        splits["validation"] = _list_split(root, folder, names, labels() if flat else {}, flat)
    return collect(layout, root, splits, names)


def _list_split(
    root: Path, folder: Path, classes: list[str], labels: Mapping[str, str], flat: bool
) -> Iterator[Found | RejectedFile]:
    known = set(classes)
    place = Place(str(folder), str(folder.relative_to(root)))
    for item in _visible(folder):
        if item.is_dir() and item.name in known:
            yield from _list_folder(root, folder / item.name, item.name)
        elif item.is_dir() and not flat:
            raise UserError("train has no such class", path=item.path, remedy="rename or remove the folder")
        else:
            yield _file(
                item, place, labels.get(item.name, ""), "the label of this file name is not known" if flat else LOOSE
            )


def _list_folder(root: Path, folder: Path, class_name: str) -> Iterator[Found | RejectedFile]:
    place = Place(str(folder), str(folder.relative_to(root)))
    for item in _visible(folder):
        yield _file(item, place, class_name)


def _file(item: os.DirEntry[str], place: Place, class_name: str, unknown: str = LOOSE) -> Found | RejectedFile:
    found = Found(class_name, place, item.name)
    if item.is_file():  # links are followed: in a folder the user made them
        return found if class_name else found.rejected(unknown)
    if item.is_dir():
        return found.rejected("a folder, not a file")
    return found.rejected("a link to a file that is missing" if item.is_symlink() else "not a regular file")


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return [item for item in items if not item.name.startswith(".")]
    except OSError as error:
        raise UserError(error.strerror or str(error), path=folder) from None
