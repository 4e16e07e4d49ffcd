"""Takes a share of the training images for validation, by their bytes.

A hash of an image's bytes decides about it, so the decision is the same on every machine, under every file name, and
after other images are added. Copies of an image stay together: none is trained and validated at the same time.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipelines.building.sources import Entry, Source
from pipelines.errors import UserError
from pipelines.system.ahead import read_ahead
from pipelines.system.progress import Progress, silent

_READERS = 16
_DIGEST_BYTES = 8
_SHOWN = 8  # names of classes in one line

_log = logging.getLogger(__name__)


def hold_out(source: Source, share: float, progress: Progress = silent) -> Source:
    """Moves a share of each class from training to validation.

    An image is moved if its hash, as a number from 0 to 1, is less than the share. So each class gets about this share,
    and a class of at least two different images gets at least one image for each of the two. Images that cannot be read
    stay in training, where the builder rejects them by name. All images are read once.

    Args:
        source: has no validation images.
        share: 0 < share < 1.
        progress: called with the number of images read.

    Returns:
        The same images in two splits.

    Raises:
        UserError: there are validation images, or no image is moved.
    """
    if "validation" in source.splits:
        what, remedy = "has validation images, so none are taken from training", "leave out the share or this folder"
        raise UserError(what, path=source.root, remedy=remedy, setting="validation_share")
    entries = source.splits["train"]
    hashes = np.empty(len(entries))
    for number, value in enumerate(read_ahead(_hash, entries, _READERS)):
        hashes[number] = value
        progress("choosing validation images", number + 1, len(entries))
    labels = np.array([entry.class_index for entry in entries])
    is_moved = moved(hashes, labels, share)
    if not is_moved.any():
        what = "no class has two different images, so none can be taken for validation"
        raise UserError(what, path=source.root, remedy="add images", setting="validation_share")
    kept, taken = (_where(entries, mask) for mask in (~is_moved, is_moved))
    _warn_of_empty(source, labels, is_moved)
    layout = f"{source.layout}, of which a share of {share:g} is for validation"
    return replace(source, layout=layout, splits={"train": kept, "validation": taken})


def moved(hashes: np.ndarray, labels: np.ndarray, share: float) -> np.ndarray:
    """Which images are for validation.

    Args:
        hashes: float [N] in [0, 1), equal for images of equal bytes; NaN for those that cannot be read.
        labels: int [N], their classes.
        share: of each class.

    Returns:
        bool [N].
    """
    found = hashes < share
    for label in np.unique(labels[~np.isnan(hashes)]):
        own = np.flatnonzero((labels == label) & ~np.isnan(hashes))
        if not found[own].any():
            found[own] = hashes[own] == hashes[own].min()
        if found[own].all():
            found[own] = hashes[own] < hashes[own].max()
    return found


def _hash(entry: Entry) -> float:
    try:
        digest = hashlib.sha256(entry.read()).digest()[:_DIGEST_BYTES]
    except OSError:
        return float("nan")
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def _where(entries: Sequence[Entry], mask: np.ndarray) -> list[Entry]:
    return [entries[number] for number in np.flatnonzero(mask).tolist()]


def _warn_of_empty(source: Source, labels: np.ndarray, is_moved: np.ndarray) -> None:
    empty = np.setdiff1d(labels, labels[is_moved]).tolist()
    if empty:
        names = ", ".join(source.classes[label].name for label in empty[:_SHOWN])
        more = f" and {len(empty) - _SHOWN:,} more" if len(empty) > _SHOWN else ""
        _log.warning("%s: too few different images for validation in %s%s", source.root, names, more)
