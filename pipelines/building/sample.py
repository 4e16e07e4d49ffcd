"""Looks at a few images of a split before all are built: how large they will be, in bytes and in pixels."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from statistics import fmean, median

from pipelines.building.clean import ImageRejected, clean_image
from pipelines.building.sources import Entry
from pipelines.system.ahead import read_ahead

# Images of a split. The mean size of 64 photos is usually right within a tenth or two. Shrinking one takes ten times as
# long as checking it, and makes the sizes more alike.
_IMAGES, _SHRUNK_IMAGES = 64, 16
_READERS = 16


@dataclass(frozen=True)
class Sample:
    """Some images of a split, as they will be stored.

    Attributes:
        image_bytes: the mean size of an image.
        short_side: the median of the shorter sides, in pixels.
    """

    image_bytes: float
    short_side: float


def take_sample(entries: Sequence[Entry], quality: int, short_side: int | None) -> Sample | None:
    """Stores images from all parts of a list, in memory only. The same list gives the same result.

    Args:
        entries: the images of a split.
        quality: see `BuildOptions`.
        short_side: see `BuildOptions`.

    Returns:
        What was found; None if none of these images can be decoded: the build will name them.
    """
    count = min(_IMAGES if short_side is None else _SHRUNK_IMAGES, len(entries))
    picked = [entries[number * len(entries) // count] for number in range(count)]
    with closing(read_ahead(_read, picked, _READERS)) as files:
        images = [image for data in files if (image := _stored(data, quality, short_side))]
    if not images:
        return None
    return Sample(fmean(size for size, _ in images), median(side for _, side in images))


def _read(entry: Entry) -> bytes:
    try:
        return entry.read()
    except OSError:
        return b""


def _stored(data: bytes, quality: int, short_side: int | None) -> tuple[int, int] | None:
    """Bytes and shorter side of an image; None if it cannot be decoded."""
    try:
        image = clean_image(data, quality, short_side)
    except ImageRejected:
        return None
    return len(image.encoded), min(image.height, image.width)
