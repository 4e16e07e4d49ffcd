"""Compares the file of image sizes with the images of a few records, at the start of a run.

Crops are planned by these sizes. Sizes that are too small train on a part of each image, and nothing else shows it.
`tools.check_shards` compares all records.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.errors import UserError
from pipelines.shards import records, remedies
from pipelines.shards.jpeg import read_header
from pipelines.shards.shard_set import ShardSet
from pipelines.system.ahead import read_ahead
from pipelines.system.reading import read_bytes

# At 110 kB a record these are 3.5 MB, all requested at once: one answer of a slow storage. One shard with wrong sizes
# may be missed, a file of another release is not.
_MOST_RECORDS, _FEWEST_RECORDS = 32, 4
_MOST_BYTES = 8 << 20  # of all records together, so that large images do not delay the start


class _Place(NamedTuple):
    path: Path
    offset: int
    length: int


def check_sizes(shards: ShardSet) -> None:
    """Checks the image sizes of a few records, spread evenly over the split.

    Records that are damaged or no JPEG are passed over: the loader reports them.

    Args:
        shards: the split.

    Raises:
        UserError: an image has another size than the file of image sizes says.
    """
    numbers = _sample(shards)
    places = [
        _Place(shards.paths[shards.shard[number]], int(shards.offsets[number]), int(shards.lengths[number]))
        for number in numbers
    ]
    found = list(read_ahead(lambda place: _size(place, shards.features.image), places, _MOST_RECORDS))
    told = [tuple(shards.sizes[number].tolist()) for number in numbers]
    wrong = [item for item in zip(numbers, found, told, strict=True) if item[1] not in (None, item[2])]
    if wrong:
        number, size, stored = wrong[0]
        assert size is not None
        example = f"record {number} has {size[0]} × {size[1]} pixels, not {stored[0]} × {stored[1]}"
        what = (
            f"the image sizes of the {shards.split} split differ from its images: {example} "
            f"({len(wrong)} of {len(numbers)} that were read)"
        )
        directory = shards.paths[0].parent
        raise UserError(what, path=directory, remedy=f"run {remedies.build_index(directory)}")


def _sample(shards: ShardSet) -> list[int]:
    """The numbers of some usable records, from the first to the last."""
    fitting = int(_MOST_BYTES // shards.lengths.mean())
    count = min(len(shards.usable), max(_FEWEST_RECORDS, min(_MOST_RECORDS, fitting)))
    return shards.usable[np.linspace(0, len(shards.usable) - 1, count).round().astype(int)].tolist()


def _size(place: _Place, image: str) -> tuple[int, int] | None:
    """Height and width by the head of the record's JPEG; None if the record is damaged or has no such head."""
    try:
        data = read_bytes(*place)
        body = data[records.HEADER_BYTES : -records.FOOTER_BYTES]
        if records.masked_crc(body) != int.from_bytes(data[-records.FOOTER_BYTES :], "little"):
            return None
        encoded = records.decode_example(memoryview(body)).get(image)
        header = read_header(bytes(encoded)) if isinstance(encoded, memoryview) else None
    except (OSError, ValueError):
        return None
    return (header.height, header.width) if header and header.height and header.width else None
