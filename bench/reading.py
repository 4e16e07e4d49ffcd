"""Records read one by one through the shard index, for limits and peers that have no reader of their own."""

import os
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.shards.records import ENCODED, FOOTER_BYTES, HEADER_BYTES, LABEL, decode_example
from pipelines.shards.shard_set import ShardSet


def read_bytes(path: Path, offset: int, length: int) -> bytes:
    """A part of a file, which is opened and closed for it: a thousand shards must not hold a thousand descriptors."""
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
    """The encoded image of a record, and its label counted from 0. Raises `UserError` if there is none."""
    features: dict[str, Any] = decode_example(memoryview(read_example(shards, record)))
    if not isinstance(features.get(ENCODED), memoryview) or not isinstance(features.get(LABEL), int):
        path = shards.paths[shards.shard[record]]
        raise UserError(f"{path}: record {record} holds no labelled image; build the shards again")
    return features[ENCODED], features[LABEL] - shards.label_base
