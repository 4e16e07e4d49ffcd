"""The classes of a split's records. dataset.json does not have them, so they are read from the shards."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.errors import UserError, reason
from pipelines.shards import records, remedies
from pipelines.system.ahead import read_ahead
from pipelines.system.reading import map_file

NO_CLASS = -1
_SHARDS_AT_ONCE = 32


class _Part(NamedTuple):
    """Records of one shard: its file, the numbers of the records in the split, their first bytes and framed lengths."""

    path: Path
    numbers: list[int]
    offsets: list[int]
    lengths: list[int]


def read_classes(
    paths: Sequence[Path],
    shard: np.ndarray,
    offsets: np.ndarray,
    lengths: np.ndarray,
    usable: np.ndarray,
    label_base: int,
    num_classes: int,
    feature: str = records.LABEL,
) -> np.ndarray:
    """Reads the class of each usable record. Pages with pixels are not touched. The arguments are those of `ShardSet`.

    Args:
        feature: the name of the label in the records.

    Returns:
        int32 [N], from 0; NO_CLASS for records that are not usable.

    Raises:
        UserError: a shard cannot be read, or a record has no label or one of no class.
    """
    parts = []
    for own in np.split(usable, np.flatnonzero(np.diff(shard[usable])) + 1):
        parts.append(_Part(paths[shard[own[0]]], own.tolist(), offsets[own].tolist(), lengths[own].tolist()))
    found = np.full(len(offsets), NO_CLASS, np.int32)
    for part, labels in zip(parts, read_ahead(partial(_labels_of, feature), parts, _SHARDS_AT_ONCE), strict=True):
        classes = np.array(labels, np.int64) - label_base
        if len(wrong := np.flatnonzero((classes < 0) | (classes >= num_classes))):
            what = f"the record at byte {part.offsets[wrong[0]]} has label {labels[wrong[0]]}, which is no class"
            raise UserError(what, path=part.path, remedy=f"run {remedies.build_index(part.path.parent)}")
        found[part.numbers] = classes
    return found


def _labels_of(feature: str, part: _Part) -> list[int]:
    try:
        shard = map_file(part.path)
    except OSError as error:
        raise UserError(reason(error), path=part.path) from None
    label = partial(_label_at, feature, part.path, shard)
    return [label(offset, length) for offset, length in zip(part.offsets, part.lengths, strict=True)]


def _label_at(feature: str, path: Path, shard: memoryview, offset: int, length: int) -> int:
    try:
        body = shard[offset + records.HEADER_BYTES : offset + length - records.FOOTER_BYTES]
        label = records.decode_example(body).get(feature)
        if not isinstance(label, int):
            raise ValueError(f"{feature} is missing")
    except ValueError as error:
        remedy = f"leave it out: {remedies.quarantine(path.parent)}"
        raise UserError(f"the record at byte {offset}: {error}", path=path, remedy=remedy) from None
    return label
