"""Matches the classes of a model with those of a data set, by WordNet id or by name. Needs NumPy only."""

import logging
import re
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.errors import UserError
from pipelines.shards.dataset import DatasetInfo

_log = logging.getLogger(__name__)
_PLACEHOLDER = re.compile(r"class \d+")  # tools.build_index gives such names if the shards name no class
_MOST_SHOWN = 3


class Classes(NamedTuple):
    """The classes of a model or of a data set.

    Attributes:
        names: in label order, empty if they are not known.
        wnids: WordNet ids in label order, empty if they are not known.
    """

    names: Sequence[str]
    wnids: Sequence[str | None] = ()

    @classmethod
    def of(cls, info: DatasetInfo) -> "Classes":
        """The classes of a data set."""
        return cls([part.name for part in info.classes], [part.wnid for part in info.classes])

    @property
    def are_known(self) -> bool:
        """Whether they have names that say what they are."""
        has_names = any(not _PLACEHOLDER.fullmatch(name) for name in self.names)
        return has_names or any(self.wnids)


def numbers_in_model(model: Classes, data: Classes, model_file: Path, dataset_dir: Path) -> np.ndarray:
    """Finds the model's number of each class of a data set.

    Classes are the same if their wnids are, where all of both sides have one; else if their names are. If one side
    has no names, the numbers of the data set are those of the model, with a warning.

    Args:
        model: the classes of the model.
        data: those of the data set, as many.
        model_file: for messages.
        dataset_dir: for messages.

    Returns:
        int32 [N]: at the number of a class in the data set, its number in the model.

    Raises:
        UserError: the model and the data set have different classes.
    """
    same = np.arange(len(data.names), dtype=np.int32)
    if not model.are_known or not data.are_known:
        if model.are_known != data.are_known or not model.names:
            whose = "the model" if not model.are_known else "the data set"
            text = "%s: the class names of %s are not known; labels of %s are compared by number"
            _log.warning(text, model_file, whose, dataset_dir)
        return same
    for ours, theirs in _keys(model, data):
        if ours == theirs:
            return same
        if len(set(ours)) == len(ours) and set(ours) == set(theirs):
            number = {key: label for label, key in enumerate(ours)}
            return np.array([number[key] for key in theirs], np.int32)
    raise UserError(
        f"predicts other classes than the data set in {dataset_dir} ({_difference(ours, theirs)})",
        path=model_file,
        remedy="use a data set with the model's classes",
    )


def plain(name: str) -> str:
    """A name as it is compared: file systems of macOS store ä as a and ¨."""
    return unicodedata.normalize("NFC", name)


def _keys(model: Classes, data: Classes) -> list[tuple[list[str], list[str]]]:
    """What to compare, the best first: wnids if there are all, else names, else wnids with names where they lack."""
    if all(model.wnids) and all(data.wnids) and model.wnids and data.wnids:
        return [([str(wnid) for wnid in model.wnids], [str(wnid) for wnid in data.wnids])]
    names = [[plain(name) for name in classes.names] for classes in (model, data)]
    mixed = [
        [wnid or name for wnid, name in zip_longest(classes.wnids, plains)]
        for classes, plains in zip((model, data), names, strict=True)
    ]
    return [(mixed[0], mixed[1]), (names[0], names[1])]


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """What only one side has, in a few words."""
    found = (("model", sorted(set(ours) - set(theirs))), ("data set", sorted(set(theirs) - set(ours))))
    parts = [
        f"only the {whose} has {', '.join(names[:_MOST_SHOWN])}" + (" …" if len(names) > _MOST_SHOWN else "")
        for whose, names in found
        if names
    ]
    return "; ".join(parts) or "several classes have the same name, in another order"
