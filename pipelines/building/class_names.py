"""Compares the class names that records have for their labels: one label is one class, in all shards and splits.

Numbers alone cannot show that a split numbers its classes differently: a model would be evaluated on wrong labels.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from pipelines.building.sources import imagenet
from pipelines.errors import one_line
from pipelines.shards import records
from pipelines.shards.dataset import ClassInfo

_WNID = re.compile(r"n\d{8}")
_SHOWN_LABELS = 3  # of each numbering in a message
_SHOWN_LETTERS = 40


class ClassNames(NamedTuple):
    """The names of a class in a record; "" where the record has none.

    Attributes:
        synset: usually the wnid.
        text: the name.
    """

    synset: str = ""
    text: str = ""

    @property
    def shown(self) -> str:
        """The name for messages."""
        name = one_line(self.text or self.synset)
        return name if len(name) <= _SHOWN_LETTERS else name[: _SHOWN_LETTERS - 1] + "…"

    @property
    def wnid(self) -> str | None:
        """The synset if it is a wnid."""
        return self.synset if _WNID.fullmatch(self.synset) else None

    def contradicts(self, other: "ClassNames") -> bool:
        """Whether the two are names of different classes. A name that is missing contradicts none."""
        if self.wnid and other.wnid:
            return self.wnid != other.wnid
        if (self.wnid and not self.text) or (other.wnid and not other.text):
            return _is_another_of_imagenet(self.wnid or other.wnid or "", self.text or other.text)
        if self.text and other.text:
            return _normal(self.text) != _normal(other.text)
        return bool(self.synset and other.synset) and _normal(self.synset) != _normal(other.synset)

    def filled(self, other: "ClassNames") -> "ClassNames":
        """These names, with those of the other where one is missing."""
        return ClassNames(self.synset or other.synset, self.text or other.text)


def _is_another_of_imagenet(wnid: str, text: str) -> bool:
    """Whether a text is the name of another class of ImageNet than a wnid; names that ImageNet lacks are not."""
    own, name = imagenet.class_names().get(wnid), _normal(text)
    return own is not None and name != own and name in imagenet.class_names().values()


def class_names(features: Mapping[str, memoryview | int | None]) -> ClassNames:
    """The names in the features of a record."""
    synset, text = (features.get(name) for name in (records.SYNSET, records.TEXT))
    return ClassNames(_text(synset), _text(text))


def _text(value: memoryview | int | None) -> str:
    return bytes(value).decode("utf-8", "replace") if isinstance(value, memoryview) else ""


Numbering = Mapping[int, ClassNames]  # label -> names


class Contradiction(NamedTuple):
    """Two numberings that differ.

    Attributes:
        file: the shard in which it was found.
        what: both numberings, one line.
    """

    file: str
    what: str


def merged(splits: Mapping[str, Mapping[str, Numbering]]) -> dict[int, ClassNames]:
    """The names of all labels of all shards, which do not contradict each other."""
    names: dict[int, ClassNames] = {}
    for shards in splits.values():
        for numbering in shards.values():
            for label, item in numbering.items():
                names[label] = names.get(label, ClassNames()).filled(item)
    return names


def find_contradiction(splits: Mapping[str, Mapping[str, Numbering]]) -> Contradiction | None:
    """Compares the numberings of shards within their split, then those of splits.

    Args:
        splits: split -> shard -> the names of its labels.

    Returns:
        The first contradiction.
    """
    before: dict[str, dict[int, ClassNames]] = {}
    for split, shards in splits.items():
        names: dict[int, ClassNames] = {}
        origin: dict[int, str] = {}
        for shard, numbering in shards.items():
            if labels := _contradicting(names, numbering, by_text=False):
                other = origin[min(labels & set(names))]
                return Contradiction(shard, _both(other, shards[other], shard, numbering, labels))
            for label, item in numbering.items():
                names[label] = names.get(label, ClassNames()).filled(item)
                origin.setdefault(label, shard)
        for other, known in before.items():
            if labels := _contradicting(known, names, by_text=True):
                file = origin[min(labels & set(names))]
                return Contradiction(file, _both(other, known, split, names, labels))
        before[split] = names
    return None


def contradiction_with_classes(classes: Sequence[ClassInfo], label_base: int, names: Numbering) -> str:
    """Compares records with the classes of dataset.json. A name that no other class has may be a new name.

    Args:
        classes: the classes of dataset.json in label order.
        label_base: the label of the first.
        names: the names of labels in records.

    Returns:
        Both numberings in one line; "" if they agree.
    """
    told = {label: ClassNames(item.wnid or "", item.name) for label, item in enumerate(classes, label_base)}
    known = {key: label for label, item in told.items() for key in _keys(item)}
    labels: set[int] = set()
    for label, item in names.items():
        others = {known[key] for key in _keys(item) if key in known}
        if label in told and item.contradicts(told[label]) and (item.wnid or others):
            labels |= {label, *others}
    return _both("dataset.json", told, "a shard", names, labels) if labels else ""


def second_name(label: int, first: tuple[int, ClassNames], second: tuple[int, ClassNames]) -> str:
    """What is wrong with a label that has two names in one shard; each is (record, names)."""
    (a, known), (b, other) = first, second
    return f"label {label} is {known.shown!r} in record {a} and {other.shown!r} in record {b}"


def _contradicting(first: Numbering, second: Numbering, by_text: bool) -> set[int]:
    """The labels of both that have different names, and those of names that have different labels.

    Two classes of a split may have the same text ("crane"), so there `by_text` is False.
    """
    labels = {label for label, item in second.items() if label in first and first[label].contradicts(item)}
    known = {key: label for label, item in first.items() for key in _keys(item) if by_text or item.wnid == key}
    for label, item in second.items():
        found = {known[key] for key in _keys(item) if key in known}
        if label not in first and found:
            labels |= {label, *found}
    return labels


def _keys(names: ClassNames) -> Collection[str]:
    """What tells a class from others: its wnid, or its name."""
    if names.wnid:
        return [names.wnid]
    return [_normal(name) for name in (names.text or names.synset,) if name]


def _both(first_name: str, first: Numbering, second_name: str, second: Numbering, labels: set[int]) -> str:
    first_part, second_part = _shown(first, labels), _shown(second, labels)
    return f"classes are numbered differently: {first_name} has {first_part}, but {second_name} has {second_part}"


def _shown(numbering: Numbering, labels: set[int]) -> str:
    there = sorted(labels & set(numbering))
    more = ["…"] if len(there) > _SHOWN_LABELS else []
    return ", ".join([f"{label} {numbering[label].shown!r}" for label in there[:_SHOWN_LABELS]] + more)


def _normal(name: str) -> str:
    """The name as dataset.json has it, in one of the Unicode forms that file systems give it."""
    return unicodedata.normalize("NFC", one_line(name))
