"""Reads single records through the shard index, for the decode limit and for peers without a TFRecord reader."""

import os
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.shards.records import ENCODED, FOOTER_BYTES, HEADER_BYTES, LABEL, decode_example
from pipelines.shards.shard_set import ShardSet


def read_bytes(path: Path, offset: int, length: int) -> bytes:
    """Reads `length` bytes of a file from `offset`. The file is closed again: there may be thousands of shards."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


def read_example(shards: ShardSet, record: int) -> bytes:
    """The serialized example of a record, without its frame."""
    path = shards.paths[shards.shard[record]]
    framed = read_bytes(path, int(shards.offsets[record]), int(shards.lengths[record]))
    return framed[HEADER_BYTES:-FOOTER_BYTES]


def read_image(shards: ShardSet, record: int) -> tuple[memoryview, int]:
    """Reads the image of a record.

    Args:
        shards: the data set.
        record: the number of the record.

    Returns:
        The encoded image, and its label counted from 0.

    Raises:
        UserError: the record has no image or no label.
    """
    features: dict[str, Any] = decode_example(memoryview(read_example(shards, record)))
    if not isinstance(features.get(ENCODED), memoryview) or not isinstance(features.get(LABEL), int):
        raise UserError(
            f"record {record} has no image with a label",
            path=shards.paths[shards.shard[record]],
            remedy="build the shards again",
        )
    return features[ENCODED], features[LABEL] - shards.label_base
