"""What a user may want to change about a data set, by dataset.json and the table of image sizes: pure functions."""

from pathlib import Path

import numpy as np

from pipelines.shards import remedies
from pipelines.shards.dataset import DatasetInfo, SplitInfo, shard_name
from pipelines.system.files import bytes_text

# Below: an order made for disks reads some megabytes of consecutive records at once, and a shard ends each such read.
# Each shard also costs three requests when a data set is opened. A few small shards do no harm.
_SMALL_BYTES, _FEW_SHARDS = 4_000_000, 64
# Above: one damaged byte means that all of it is copied again, and a process that checks or builds has no smaller part.
# It is also near the most that object stores take in one request, 5 GB.
_LARGE_BYTES = 4_000_000_000
# The smallest crop of the usual augmentation has 8 % of the area, a side of 0.28. In a picture of 4 times the training
# size even this crop has more pixels than training takes, so none of its detail reaches the model.
_FAR_LARGER = 4


def shard_size_problem(part: SplitInfo) -> str:
    """What is wrong with the size of a split's shards, "" if nothing is."""
    count = len(part.shards)
    mean = sum(shard.bytes for shard in part.shards) / count
    if count > _FEW_SHARDS and mean < _SMALL_BYTES:
        return f"{count:,} shards of {bytes_text(mean)} are far too small: they are read in many short requests"
    if mean > _LARGE_BYTES:
        return f"shards of {bytes_text(mean)} are far too large: one fault costs the copy of a whole shard"
    return ""


def unused_splits(info: DatasetInfo, directory: Path, wanted: str) -> str:
    """The splits that a run does not use, and how one becomes the split that it looks for; "" if there are none.

    Args:
        info: dataset.json, which has no split `wanted`.
        directory: its folder.
        wanted: "train" or "validation".
    """
    names = sorted(set(info.splits) - {"train", "validation"})
    if not names:
        return ""
    shards = info.splits[names[0]].shards
    first, renamed = shards[0].file, shard_name(wanted, 0, len(shards))
    rename = f"rename its shards ({first} to {renamed} and so on) and run {remedies.build_index(directory)}"
    noun = "the split" if len(names) == 1 else "the splits"
    return f"{noun} {', '.join(names)} of {directory} {'is' if len(names) == 1 else 'are'} not used: {rename}"


def better_short_side(short_sides: float | np.ndarray, image_size: int) -> int | None:
    """The shorter side that pictures should be stored with, in pixels.

    Args:
        short_sides: the shorter sides of the pictures, or their median.
        image_size: the side of the images of a training.

    Returns:
        A power of two that is at least twice the image size; None if most pictures are not far larger than needed.
    """
    if np.median(short_sides) <= _FAR_LARGER * image_size:
        return None
    return 1 << (2 * image_size - 1).bit_length()
