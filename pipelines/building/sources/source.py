"""What every layout comes to: a list of images with their classes, the same list for the same images."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipelines.building.sources import imagenet
from pipelines.errors import UserError
from pipelines.shards.dataset import ClassInfo

WHOLE_FILE = -1
_WNID = re.compile(r"n\d{8}")


class Place(NamedTuple):
    """Where images lie; shared by all of them.

    Attributes:
        file: the folder that holds their files, or the tar that holds their bytes.
        shown: the same as users know it, from the source's root; a tar in a tar as one more folder.
    """

    file: str
    shown: str


class Entry(NamedTuple):
    """One image of a source; small, for ImageNet has 1.3 million of them.

    Attributes:
        name: the file name that the record gets.
        class_index: the number of its class, counted from 0.
        offset, length: where its bytes lie in `place.file`; WHOLE_FILE: they are the file `name` in that folder.
    """

    place: Place
    name: str
    class_index: int
    offset: int = WHOLE_FILE
    length: int = WHOLE_FILE

    @property
    def path(self) -> str:
        """The image as users know it: from the source's root."""
        return f"{self.place.shown}/{self.name}" if self.place.shown else self.name

    def read(self) -> bytes:
        """The image's bytes, whatever they are; raises `OSError`."""
        if self.offset == WHOLE_FILE:
            with open(os.path.join(self.place.file, self.name), "rb", buffering=0) as stream:
                return stream.readall()
        with open(self.place.file, "rb", buffering=0) as stream:
            data = os.pread(stream.fileno(), self.length, self.offset)
        if len(data) != self.length:
            raise OSError(f"{self.place.file} is shorter than it was")
        return data


class Rejected(NamedTuple):
    """A file that does not become a record, and why not."""

    split: str
    path: str
    reason: str


class Found(NamedTuple):
    """A file that a layout met, before classes have numbers; `class_name` is "" where it does not say one."""

    class_name: str
    place: Place
    name: str
    offset: int = WHOLE_FILE
    length: int = WHOLE_FILE

    def rejected(self, reason: str) -> Rejected:
        """This file, not fit to be a record. The split is filled in by `collect`."""
        return Rejected("", f"{self.place.shown}/{self.name}" if self.place.shown else self.name, reason)


@dataclass(frozen=True, eq=False)
class Source:
    """What a data set holds before it is built.

    Attributes:
        layout: one line for the user.
        root: what paths are relative to.
        classes: in label order: sorted folder names; for ImageNet these are the sorted wnids.
        splits: the images of each split, sorted by class and file name, so that the same images give the same
            shuffle whatever layout they come in.
        rejected: what was seen but cannot be an image, or belongs to no class.
    """

    layout: str
    root: Path
    classes: tuple[ClassInfo, ...]
    splits: dict[str, list[Entry]]
    rejected: list[Rejected] = field(default_factory=list)


def collect(
    layout: str,
    root: Path,
    splits: Mapping[str, Iterable[Found | Rejected]],
    class_names: Sequence[str] | None = None,
) -> Source:
    """Numbers the classes that training has and sorts the images. `splits` begins with train.

    `class_names` are all classes of train, where the layout knows them before their images. Images of other classes
    and second files of one name are rejected. Raises `UserError` if a class or a split has no images.
    """
    rejected: list[Rejected] = []
    names = sorted(class_names or ())
    numbers = {name: number for number, name in enumerate(names)}
    entries: dict[str, list[Entry]] = {}
    for split, items in splits.items():
        listed = _numbered(split, items, numbers, rejected, grow=split == "train" and class_names is None)
        if split == "train":
            met, names = numbers, _check_names(root, sorted(numbers))
            numbers = {name: number for number, name in enumerate(names)}
            if list(met) != names:  # the classes were met in another order than theirs
                final = [numbers[name] for name in met]
                listed = [entry._replace(class_index=final[entry.class_index]) for entry in listed]
        entries[split] = _sorted(split, listed, rejected)
        if not entries[split]:
            raise UserError(f"{root}: {layout}: no {split} images in classes; add some or remove what holds them")
    filled = {entry.class_index for entry in entries["train"]}
    if empty := [name for name in names if numbers[name] not in filled]:
        raise UserError(f"{root}: {empty[0]}: the class has no training images; add some or remove it")
    return Source(layout, root, tuple(map(_class_info, names)), entries, sorted(rejected))


def _numbered(
    split: str, items: Iterable[Found | Rejected], numbers: dict[str, int], rejected: list[Rejected], grow: bool
) -> list[Entry]:
    entries = []
    for item in items:
        if isinstance(item, Rejected):
            rejected.append(item._replace(split=split))
            continue
        if item.class_name not in numbers:
            if not grow:
                reason = f"no training images of its class {item.class_name}"
                rejected.append(item.rejected(reason)._replace(split=split))
                continue
            numbers[item.class_name] = len(numbers)
        entries.append(Entry(item.place, item.name, numbers[item.class_name], item.offset, item.length))
    return entries


def _sorted(split: str, entries: list[Entry], rejected: list[Rejected]) -> list[Entry]:
    """By class and name; a second entry of the same class and name is rejected."""
    entries.sort(key=lambda entry: (entry.class_index, entry.name))
    kept: list[Entry] = []
    for entry in entries:
        if kept and (kept[-1].class_index, kept[-1].name) == (entry.class_index, entry.name):
            rejected.append(Rejected(split, entry.path, "a second file of this name in its class"))
        else:
            kept.append(entry)
    return kept


def _check_names(root: Path, names: list[str]) -> list[str]:
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{root}: the class {name!r} has no valid UTF-8 name; rename it") from None
    return names


def _class_info(name: str) -> ClassInfo:
    if not _WNID.fullmatch(name):
        return ClassInfo(name=name)
    return ClassInfo(name=imagenet.class_names().get(name, name), wnid=name)
