"""Which records of a batch that could not be read are to blame: each is read and decoded for itself."""

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError, first_line
from pipelines.shards import records
from pipelines.shards.shard_set import ShardSet
from pipelines.system.reading import read_bytes
from pipelines.system.watch import NoAnswer, within

PROBE_SECONDS = 10.0  # in which a shard that can be read gives its first and last byte


@dataclass(frozen=True)
class CorruptRecord:
    """A record whose image no loader can decode.

    Attributes:
        record: its number in the split. offset: its first byte in the shard.
    """

    split: str
    shard: str
    record: int
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}: the record at byte {self.offset} (record {self.record} of {self.split}): {self.reason}"


def problem_of_shards(shards: ShardSet, numbers: Iterable[int]) -> str:
    """The first shard in which one of the records lies and that cannot be read in full, and why; else nothing."""
    for shard in sorted({int(shards.shard[number]) for number in numbers}):
        last = int((shards.shard <= shard).sum()) - 1
        end = int(shards.offsets[last] + shards.lengths[last])
        if problem := _problem_of_file(shards.paths[shard], end):
            return f"{shards.paths[shard]}: {problem}"
    return ""


def _problem_of_file(path: Path, end: int) -> str:
    def problem() -> str:
        try:
            if (size := os.stat(path).st_size) != end and path.is_file():
                return f"has {size:,} bytes now, not {end:,}; copy or build it again"
            read_bytes(path, 0, 1)
            read_bytes(path, end - 1, 1)
        except OSError as error:
            return f"{error.strerror}; is its disk or network there? if need be, copy or build it again"
        return ""

    try:
        return within(PROBE_SECONDS, problem)
    except NoAnswer:
        return f"gives no answer for {PROBE_SECONDS:g} seconds; is its disk or network there?"


def find_corrupt(shards: ShardSet, numbers: Iterable[int]) -> list[CorruptRecord]:
    """Those of the records that cannot be decoded, in the order they were given.

    An image has to decode in full, by TensorFlow and by Pillow. If all do, those whose bytes do not have the checksum
    that was stored with them are to blame. A record may be corrupt and in neither list's way: 40 bytes that change
    within a JPEG give another picture, and decode.
    """
    numbers = list(dict.fromkeys(int(number) for number in numbers))
    for judge in (_why_undecodable, _why_other_bytes):
        reasons = {number: judge(shards, number) for number in numbers}
        if found := [_named(shards, number, reason) for number, reason in reasons.items() if reason]:
            return found
    return []


def _named(shards: ShardSet, number: int, reason: str) -> CorruptRecord:
    path = shards.paths[shards.shard[number]]
    return CorruptRecord(shards.split, str(path), number, int(shards.offsets[number]), reason)


def _why_undecodable(shards: ShardSet, number: int) -> str:
    try:
        stored = shards.read(number)
    except UserError:
        return "no image or no label"
    except ValueError as error:
        return first_line(error)
    if not 0 <= stored.label - shards.label_base < shards.num_classes:
        return f"its label {stored.label} is of no class"
    return _why_no_image(stored.encoded)


def _why_no_image(encoded: bytes) -> str:
    import tensorflow as tf
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
        tf.io.decode_jpeg(encoded, channels=3)
    except UnidentifiedImageError:
        return "its image is no image"
    except Exception as error:  # whatever two decoders raise for bytes that are no image
        return "its image cannot be decoded (" + first_line(error).removesuffix(" [Op:DecodeJpeg] name: ") + ")"
    return ""


def _why_other_bytes(shards: ShardSet, number: int) -> str:
    path, offset = shards.paths[shards.shard[number]], int(shards.offsets[number])
    framed = read_bytes(path, offset, int(shards.lengths[number]))
    return (
        "" if records.frame(framed[records.HEADER_BYTES : -records.FOOTER_BYTES]) == framed else "its checksum is wrong"
    )
