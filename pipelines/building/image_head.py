"""Reads the head of an image in a record: its size, and whether loaders read the image as the builder would store it.

No pixel is read: a shard is mapped into memory, and only the pages that are looked at are loaded.
"""

import io
from itertools import takewhile
from typing import NamedTuple, cast

from PIL import Image

from pipelines.building.clean import FORMATS, peculiarity
from pipelines.shards.jpeg import BASELINE, PROGRESSIVE, head_bytes, read_header, segments
from pipelines.system.pillow import without_limit_and_warnings

_APP1, _APP14, _SCAN = 0xE1, 0xEE, 0xDA  # EXIF and XMP; Adobe's, which says how colours are stored; the first pixels
_HEAD = 1 << 16  # bytes of other formats that are looked at first


class ImageHead(NamedTuple):
    """What the head of an image says.

    Attributes:
        size: (height, width) in pixels; None if it cannot be read.
        peculiarity: why the builder would encode the image again, such as "PNG" or "EXIF orientation 6"; "" if not.
    """

    size: tuple[int, int] | None
    peculiarity: str = ""


def read_image_head(encoded: memoryview) -> ImageHead:
    """Reads the head of an image of any format.

    Args:
        encoded: the whole image.
    """
    data = cast(bytes, encoded)  # a view reads the same; copying would touch all pixels
    try:
        header = read_header(data)
    except ValueError:
        return _of_other_format(encoded)
    size = (header.height, header.width) if header.height and header.width else None
    try:
        markers = {marker for marker, _ in takewhile(lambda item: item[0] != _SCAN, segments(data))}
        plain = header.components in (1, 3) and header.process in (BASELINE, PROGRESSIVE) and header.precision == 8
        if plain and not markers & {_APP1, _APP14}:
            return ImageHead(size)
        found = _opened(head_bytes(data))
    except ValueError:
        found = None
    return ImageHead(size or (found and found.size), found.peculiarity if found else "")


def _of_other_format(encoded: memoryview) -> ImageHead:
    """A PNG and others. Some need more than their first bytes."""
    return _opened(bytes(encoded[:_HEAD])) or _opened(bytes(encoded)) or ImageHead(None)


def _opened(head: bytes) -> ImageHead | None:
    try:
        with without_limit_and_warnings(), Image.open(io.BytesIO(head), formats=FORMATS) as image:
            return ImageHead((image.height, image.width), peculiarity(image, head))
    except Exception:  # Pillow raises many types; what it cannot read, training or a check will report
        return None
