"""A source: the list of images with their classes. The same images give the same list in every layout."""

import errno
import logging
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Literal, NamedTuple

from pipelines.building.sources import imagenet
from pipelines.errors import UserError
from pipelines.shards.dataset import ClassInfo

WHOLE_FILE = -1
_log = logging.getLogger(__name__)
_WNID = re.compile(r"n\d{8}")
# What ends a line, is a command for a terminal, or changes the direction of text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Stamp(NamedTuple):
    """Tells a file from another of its name, and from itself after a change.

    Attributes:
        size: in bytes.
        modified: the time of the last change of its content, ns.
        changed: the time of the last change of its inode, ns; it also shows a replacement that keeps size and time.
    """

    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, file: str | int) -> "Stamp":
        """The stamp of a path or file descriptor; raises `OSError`."""
        found = os.stat(file)
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Place(NamedTuple):
    """Where images are; all images of a folder or tar share one.

    Attributes:
        file: the folder of their files, or the tar with their bytes.
        shown: the same for messages, relative to the source's root; a tar in a tar is shown as a folder.
        listed: (size, modified) of the tar when it was listed; empty for a folder.
    """

    file: str
    shown: str
    listed: tuple[int, ...] = ()


class Entry(NamedTuple):
    """One image of a source. It takes little memory: ImageNet has 1.3 million.

    Attributes:
        place: the folder or tar that has it.
        name: the file name that the record gets.
        class_index: the number of its class, from 0.
        offset: its first byte in `place.file`; WHOLE_FILE if it is the file `name` in that folder.
        length: its number of bytes; WHOLE_FILE if it is a file in a folder.
    """

    place: Place
    name: str
    class_index: int
    offset: int = WHOLE_FILE
    length: int = WHOLE_FILE

    @property
    def path(self) -> str:
        """The image for messages, relative to the source's root."""
        return f"{self.place.shown}/{self.name}" if self.place.shown else self.name

    @property
    def file(self) -> str:
        """The file that has its bytes."""
        return os.path.join(self.place.file, self.name) if self.offset == WHOLE_FILE else self.place.file

    def read(self) -> bytes:
        """The bytes of the image, not checked; raises `OSError`."""
        return self.read_stamped()[0]

    def read_stamped(self) -> tuple[bytes, Stamp]:
        """The bytes of the image, not checked, and the stamp of their file; raises `OSError`."""
        with open_regular(self.file) as stream:
            stamp = Stamp.of(stream.fileno())  # before the bytes: a later change is then seen
            if self.offset == WHOLE_FILE:
                return stream.readall(), stamp
            data = os.pread(stream.fileno(), self.length, self.offset)
        if len(data) != self.length or stamp.size < self.place.listed[0]:
            raise OSError(f"{self.place.file} is shorter than it was")
        if stamp[:2] != self.place.listed:
            raise OSError(f"{self.place.file} was changed after its images were listed")
        return data, stamp


def open_regular(path: str | Path) -> FileIO:
    """Opens a file for reading. Anything else, such as a FIFO, which would block, is refused; raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return FileIO(descriptor)


class RejectedFile(NamedTuple):
    """A file that does not become a record.

    Attributes:
        split: the split that it was listed for.
        path: the file, relative to the source's root.
        reason: why it does not.
    """

    split: str
    path: str
    reason: str


class Found(NamedTuple):
    """A file that a layout found, before classes have numbers.

    Attributes:
        class_name: its class; "" if the layout does not know it.
        place: see `Entry`.
        name: see `Entry`.
        offset: see `Entry`.
        length: see `Entry`.
    """

    class_name: str
    place: Place
    name: str
    offset: int = WHOLE_FILE
    length: int = WHOLE_FILE

    def rejected(self, reason: str) -> RejectedFile:
        """This file as one that does not become a record. `collect` fills in the split."""
        return RejectedFile("", f"{self.place.shown}/{self.name}" if self.place.shown else self.name, reason)


class Listing(NamedTuple):
    """The files of a split.

    Attributes:
        files: what was found.
        classes: all classes, if the layout knows them before their images.
        order: of the labels: "name": as the names of the classes are sorted; "number": as the names are counted, if
            all are numbers; "given": the order of `classes`, in which the data set itself numbers them.
        names_repeat: whether files of one name in a class are different images.
    """

    files: Iterable[Found | RejectedFile]
    classes: Sequence[str] | None = None
    order: Literal["name", "number", "given"] = "name"
    names_repeat: bool = False


@dataclass(frozen=True, eq=False)
class Source:
    """The images of a data set before it is built.

    Attributes:
        layout: a description of the layout, one line.
        root: the folder that paths are relative to.
        classes: in label order, which is the order of the folder names; for ImageNet, of the wnids. A data set that
            numbers its classes itself keeps its numbers.
        splits: the images of each split, sorted by class and file name, so that the same images give the same
            shuffle in every layout.
        rejected: files that cannot be images or have no class.
        packed: path -> (size, modified) of each file that was unpacked for the build.
    """

    layout: str
    root: Path
    classes: tuple[ClassInfo, ...]
    splits: dict[str, list[Entry]]
    rejected: list[RejectedFile] = field(default_factory=list)
    packed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def collect(layout: str, root: Path, splits: Mapping[str, Listing]) -> Source:
    """Gives numbers to the classes of train and sorts the images.

    Images of other classes, and further files of one name in a class, are rejected.

    Args:
        layout: a description of the layout, one line.
        root: the folder that paths are relative to.
        splits: the files of each split; train is the first.

    Returns:
        The source.

    Raises:
        UserError: a class or a split has no images, or a class name cannot be used or looks like another.
    """
    rejected: list[RejectedFile] = []
    train = splits["train"]
    names = _ordered(train.classes or (), train.order)
    numbers = {name: number for number, name in enumerate(names)}
    entries: dict[str, list[Entry]] = {}
    for split, listing in splits.items():
        is_train = split == "train"
        listed = _numbered(split, listing.files, numbers, rejected, grow=is_train and train.classes is None)
        if is_train:
            met, names = numbers, _check_names(root, _ordered(numbers, train.order))
            numbers = {name: number for number, name in enumerate(names)}
            if list(met) != names:  # the classes were found in another order
                final = [numbers[name] for name in met]
                listed = [entry._replace(class_index=final[entry.class_index]) for entry in listed]
        entries[split] = _sorted(split, listed, rejected, listing.names_repeat)
        if not entries[split]:
            lost = next((f"; the first is {item.path}: {item.reason}" for item in rejected if item.split == split), "")
            what = f"{layout}: no {split} images in classes{lost}"
            raise UserError(what, path=root, remedy="add some or remove their folder or tar")
    filled = {entry.class_index for entry in entries["train"]}
    if empty := [name for name in names if numbers[name] not in filled]:
        what = f"the class {empty[0]} has no training images"
        if train.order != "given":
            raise UserError(what, path=root, remedy="add some or remove it")
        more = f"; so do {len(empty) - 1:,} others" if len(empty) > 1 else ""
        _log.warning("%s: %s%s; the data set's own numbers of classes are kept", root, what, more)
    return Source(layout, root, tuple(map(class_info, names)), entries, sorted(rejected))


def _ordered(names: Iterable[str], order: str) -> list[str]:
    """Names of classes in label order; see `Listing`."""
    names = list(names)
    if order == "given":
        return names
    if order == "number" and all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _numbered(
    split: str, items: Iterable[Found | RejectedFile], numbers: dict[str, int], rejected: list[RejectedFile], grow: bool
) -> list[Entry]:
    """The files of a split that have a class; others are added to `rejected`, new classes to `numbers` if `grow`."""
    entries = []
    for item in items:
        if isinstance(item, RejectedFile):
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


def _sorted(split: str, entries: list[Entry], rejected: list[RejectedFile], names_repeat: bool) -> list[Entry]:
    """Sorts by class and name. A second entry of the same class and name is rejected, unless names repeat."""
    entries.sort(key=lambda entry: (entry.class_index, entry.name))
    if names_repeat:
        return entries
    kept: list[Entry] = []
    for entry in entries:
        if kept and (kept[-1].class_index, kept[-1].name) == (entry.class_index, entry.name):
            rejected.append(RejectedFile(split, entry.path, "a second file of this name in its class"))
        else:
            kept.append(entry)
    return kept


def _check_names(root: Path, names: list[str]) -> list[str]:
    """The names of the classes, if all can be written to records and told apart."""
    alike: dict[str, str] = {}
    for name in names:
        if reason := _problem_of_name(name):
            raise UserError(f"the name of the class {name!a} {reason}", path=root, remedy="rename it")
        other = alike.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            what = f"the classes {other!a} and {name!a} look alike: their names differ only in Unicode form"
            raise UserError(what, path=root, remedy="merge or rename them")
    return names


def _problem_of_name(name: str) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    return "has control characters" if _CONTROL.search(name) else ""


def class_info(name: str) -> ClassInfo:
    """The entry of a class for dataset.json; the name of a class of ImageNet is its wnid."""
    if not _WNID.fullmatch(name):
        return ClassInfo(name=name)
    return ClassInfo(name=imagenet.class_names().get(name, name), wnid=name)
