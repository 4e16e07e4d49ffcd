"""Finds the records that made a batch fail: each record is read and decoded by itself."""

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError, first_line, reason
from pipelines.shards import records
from pipelines.shards.index import Index, index_path, misplaced
from pipelines.shards.remedies import build_index
from pipelines.shards.shard_set import ShardSet
from pipelines.system.reading import read_bytes
from pipelines.system.watch import NoAnswer, within

PROBE_SECONDS = 10.0  # in this time a readable shard gives its first and last byte


@dataclass(frozen=True)
class CorruptRecord:
    """A record whose image no loader can decode.

    Attributes:
        split: "train", "validation", …
        shard: path of the shard.
        record: its number in the split.
        offset: its first byte in the shard.
        reason: what is wrong with it.
    """

    split: str
    shard: str
    record: int
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}: the record at byte {self.offset} (record {self.record} of {self.split}): {self.reason}"


def problem_of_shards(shards: ShardSet, numbers: Iterable[int]) -> UserError | None:
    """Checks the shards of some records.

    Args:
        shards: one split.
        numbers: records of it.

    Returns:
        The first shard that cannot be read in full, as an error with path, what and remedy; None if there is none.
    """
    for shard in sorted({int(shards.shard[number]) for number in numbers}):
        last = int((shards.shard <= shard).sum()) - 1
        end = int(shards.offsets[last] + shards.lengths[last])
        if problem := _problem_of_file(shards.paths[shard], end):
            return problem
    return None


def _problem_of_file(path: Path, end: int) -> UserError | None:
    def problem() -> UserError | None:
        try:
            if (size := os.stat(path).st_size) != end and path.is_file():
                return UserError(f"has {size:,} bytes now, not {end:,}", path=path, remedy="copy or build it again")
            read_bytes(path, 0, 1)
            read_bytes(path, end - 1, 1)
        except OSError as error:
            remedy = "check its disk and network, or copy or build it again"
            return UserError(reason(error), path=path, remedy=remedy)
        return None

    try:
        return within(PROBE_SECONDS, problem)
    except NoAnswer:
        what = f"gives no answer for {PROBE_SECONDS:g} seconds"
        return UserError(what, path=path, remedy="check its disk and network")


def find_corrupt(shards: ShardSet, numbers: Iterable[int]) -> list[CorruptRecord]:
    """Finds the corrupt records among some.

    An image has to decode in full, with TensorFlow and with Pillow. If all images do, the records with a wrong checksum
    caused the failure. The order matters: a JPEG in which some bytes changed may decode, and training can use it. If
    all checksums are right, too, images of other formats did it: some loaders read only JPEG.

    Args:
        shards: one split.
        numbers: records of it.

    Returns:
        The corrupt ones, in the given order.

    Raises:
        UserError: the records are good, but the index of their shard does not say where they are.
        OSError: a shard cannot be read.
    """
    numbers = list(dict.fromkeys(int(number) for number in numbers))
    for judge in (_why_undecodable, _why_other_bytes, _why_no_jpeg):
        reasons = {number: judge(shards, number) for number in numbers}
        if found := [_named(shards, number, reason) for number, reason in reasons.items() if reason]:
            _check_index(shards, found)
            return found
    return []


def _check_index(shards: ShardSet, found: list[CorruptRecord]) -> None:
    """Looks the records up by the lengths and CRCs in their shards. Raises `UserError` if their index is wrong."""
    for shard in sorted({int(shards.shard[record.record]) for record in found}):
        path, here = shards.paths[shard], shards.shard == shard
        if wrong := misplaced(path, Index(shards.offsets[here], shards.lengths[here])):
            number, offset = wrong
            listed = int(shards.offsets[here][number])
            where = f"is at byte {offset}, not {listed}" if offset != listed else "has another length"
            what = f"the index does not fit its shard: the record at byte {listed} {where}"
            raise UserError(what, path=index_path(path), remedy=f"run {build_index(path.parent)}")


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
        return f"its label {stored.label} belongs to no class"
    return _why_no_image(stored.encoded)


def _why_no_image(encoded: bytes) -> str:
    import tensorflow as tf
    from PIL import Image, UnidentifiedImageError

    from pipelines.system.pillow import without_limit_and_warnings

    try:
        with without_limit_and_warnings(), Image.open(io.BytesIO(encoded)) as image:
            image.load()
        tf.io.decode_jpeg(encoded, channels=3)
    except UnidentifiedImageError:
        return "its image data is not an image"
    except Exception as error:  # decoders raise many types for damaged images
        return "its image cannot be decoded (" + first_line(error).removesuffix(" [Op:DecodeJpeg] name: ") + ")"
    return ""


def _why_other_bytes(shards: ShardSet, number: int) -> str:
    path, offset = shards.paths[shards.shard[number]], int(shards.offsets[number])
    framed = read_bytes(path, offset, int(shards.lengths[number]))
    body = framed[records.HEADER_BYTES : -records.FOOTER_BYTES]
    return "" if records.frame(body) == framed else "its checksum is wrong"


def _why_no_jpeg(shards: ShardSet, number: int) -> str:
    is_jpeg = shards.read(number).encoded.startswith(b"\xff\xd8")
    return "" if is_jpeg else "its image is no JPEG, and not every loader reads it; `build_shards` stores it as one"
