"""Where images come from before they are shards: a source lists every file with its class.

A layout is one function that returns a `Source`; `open_source` recognizes it by looking.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipelines.dataset import ClassInfo
from pipelines.errors import UserError

SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val")}
_WNID = re.compile(r"n\d{8}")


class Entry(NamedTuple):
    """One image of a source: the file that holds it and the number of its class, counted from 0."""

    path: str
    class_index: int

    @property
    def filename(self) -> str:
        """The name that the record gets."""
        return Path(self.path).name

    def read(self) -> bytes:
        """The image's bytes, whatever they are; raises `OSError`."""
        return Path(self.path).read_bytes()


class Rejected(NamedTuple):
    """A file that does not become a record, and why not."""

    split: str
    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class Source:
    """What a data set holds before it is built.

    Attributes:
        layout: one line for the user.
        root: what `Rejected.path` is relative to.
        classes: in label order: sorted folder names.
        splits: the images of each split, sorted by class and file name, so that the same images give the same
            shuffle whatever layout they come in.
        rejected: what was seen but belongs to no class.
    """

    layout: str
    root: Path
    classes: tuple[ClassInfo, ...]
    splits: dict[str, list[Entry]]
    rejected: list[Rejected] = field(default_factory=list)

    def relative(self, entry: Entry) -> str:
        """The entry's path as users know it: from the root."""
        path = Path(entry.path)
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)


def open_source(root: str | Path) -> Source:
    """Recognizes the layout of a folder and lists its images. Names that begin with a dot are not looked at.

    Raises `UserError` if the folder has no layout that is known, a class without training images, or a class for
    validation that training does not know.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; --source is the folder that holds train/<class>/ and validation/<class>/"
        )
    return _class_folders(root)


def _class_folders(root: Path) -> Source:
    """train/<class>/*, validation/<class>/* (or val/<class>/*)."""
    folders = {
        split: next((root / n for n in names if (root / n).is_dir()), None) for split, names in SPLIT_FOLDERS.items()
    }
    if folders["train"] is None:
        raise UserError(f"{root}: there is no folder train/<class>/ with the training images in it")
    names = sorted(path.name for path in _visible(folders["train"]) if path.is_dir())
    if not names:
        raise UserError(f"{folders['train']}: no class folders; images belong in {folders['train'].name}/<class>/")
    if unreadable := [name for name in names if not _is_utf8(name)]:
        raise UserError(f"{folders['train']}: the class folder {unreadable[0]!r} has no valid UTF-8 name; rename it")
    numbers = {name: number for number, name in enumerate(names)}
    splits: dict[str, list[Entry]] = {}
    rejected: list[Rejected] = []
    for split, folder in folders.items():
        if folder is None:
            continue
        entries = splits[split] = []
        for path in _visible(folder):
            if not path.is_dir():
                rejected.append(Rejected(split, str(path.relative_to(root)), "lies in no class folder"))
            elif path.name not in numbers:
                raise UserError(f"{path}: no such class in {folders['train']}; rename or remove the folder")
            else:
                entries += [Entry(str(file), numbers[path.name]) for file in _visible(path)]
    filled = {entry.class_index for entry in splits["train"]}
    if empty := [name for name in names if numbers[name] not in filled]:
        raise UserError(
            f"{folders['train'] / empty[0]}: the class has no training images; add some or remove the folder"
        )
    if not splits.get("validation", [True]):
        raise UserError(f"{folders['validation']}: no images in class folders; add some or remove the folder")
    classes = tuple(ClassInfo(name=name, wnid=name if _WNID.fullmatch(name) else None) for name in names)
    layout = ", ".join(f"{folder.name}/<class>/" for folder in folders.values() if folder)
    return Source(layout, root, classes, splits, rejected)


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
