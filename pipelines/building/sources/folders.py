"""Images in folders: train/<class>/ and validation/<class>/, or ImageNet's validation images in one folder."""

import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from pipelines.building.sources import imagenet
from pipelines.building.sources.part import Part
from pipelines.building.sources.source import Found, Listing, Place, RejectedFile
from pipelines.errors import UserError, reason
from pipelines.shards.contents import IMAGE_SUFFIXES

SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid", "test")}
_FEWEST_CLASSES = 2  # a single folder of images says nothing of classes
_SPLIT_NAMES = set(chain.from_iterable(SPLIT_FOLDERS.values()))
LOOSE = "not in a class folder"


def find_split(root: Path, split: str) -> Path | None:
    """The folder of a split, if it exists. A folder `test` counts only with class folders: many have no labels."""
    folders = (root / name for name in SPLIT_FOLDERS[split])
    return next(
        (folder for folder in folders if folder.is_dir() and (folder.name != "test" or _has_folders(folder))), None
    )


def _has_folders(folder: Path) -> bool:
    return any(item.is_dir() for item in _visible(folder))


def is_flat(folder: Path) -> bool:
    """Whether a folder has ImageNet's validation images without class folders."""
    return any(imagenet.VALIDATION_NAME.fullmatch(item.name) for item in _visible(folder))


def may_be_split(folder: Path, split: str) -> bool:
    """Whether a folder may have the images of a split: it has folders, or images that will be named as rejected.

    It may have Parquet files instead, for example.
    """
    items = _visible(folder)
    return any(item.is_dir() for item in items) or (split != "train" and any(_is_image(item.name) for item in items))


def one_folder(root: Path) -> dict[str, Part]:
    """<class>/*, all of it for training. Loose images are rejected, other loose files are not used."""
    items = _visible(root)
    folders = [Path(item.path) for item in items if item.is_dir()]
    if {folder.name for folder in folders} & _SPLIT_NAMES or sum(map(_has_image, folders)) < _FEWEST_CLASSES:
        return {}
    loose = [Path(item.path) for item in items if not item.is_dir() and _is_image(item.name)]

    def read(_: Sequence[Path], __: Sequence[str] | None) -> Listing:
        classes = list_classes(root)
        images = chain.from_iterable(_list_folder(root, root / name, name) for name in classes)
        return Listing(chain(images, (RejectedFile("", path.name, LOOSE) for path in loose)), classes)

    return {"train": Part("<class>/, all of it for training", (*folders, *loose), read)}


def _has_image(folder: Path) -> bool:
    try:
        with os.scandir(folder) as items:
            return any(_is_image(item.name) for item in items)
    except OSError as error:
        raise UserError(reason(error), path=folder) from None


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def list_classes(folder: Path) -> list[str]:
    """The names of the class folders of train, sorted.

    Raises:
        UserError: there are none.
    """
    names = sorted(item.name for item in _visible(folder) if item.is_dir())
    if not names:
        raise UserError("no class folders", path=folder, remedy=f"put the images into {folder.name}/<class>/")
    return names


def list_split(
    root: Path, folder: Path, classes: Sequence[str] | None, labels: Mapping[str, str] | None
) -> Iterator[Found | RejectedFile]:
    """Lists the files of a split in its class folders, or directly in `folder`.

    Args:
        root: the folder that paths are relative to.
        folder: the folder of the split.
        classes: the classes of train; None if they are not known yet.
        labels: file name -> class of images directly in `folder`; None if all are in class folders.

    Yields:
        `Found` for each file that has a class, `RejectedFile` for the others.

    Raises:
        UserError: train does not have a class.
    """
    known = set(classes or ())
    place = Place(str(folder), str(folder.relative_to(root)))
    for item in _visible(folder):
        if item.is_dir() and (item.name in known or (classes is None and labels is None)):
            yield from _list_folder(root, folder / item.name, item.name)
        elif item.is_dir() and labels is None:
            raise _unknown_class(item, known)
        elif labels is None:
            yield _file(item, place, "", LOOSE)
        else:
            yield _file(item, place, labels.get(item.name, ""), "the label of this file name is not known")


def _unknown_class(item: os.DirEntry[str], known: Collection[str]) -> UserError:
    form = unicodedata.normalize("NFC", item.name)
    for name in known:
        if unicodedata.normalize("NFC", name) == form:
            what = f"train has a class that looks alike, {name!a}, not {item.name!a}"
            return UserError(what, path=item.path, remedy="rename the folder to the name in train")
    return UserError("train has no such class", path=item.path, remedy="rename or remove the folder")


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
        raise UserError(reason(error), path=folder) from None
