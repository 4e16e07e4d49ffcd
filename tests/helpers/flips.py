"""Flips single bits of a data set, and knows the file, record and byte that a checker has to name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.shards import records
from pipelines.shards.index import index_path, read_index

REGIONS = ("length", "length CRC", "features", "image", "data CRC", "index")


@dataclass(frozen=True)
class Flip:
    """One bit to flip.

    Attributes:
        file: the file name.
        byte: the byte in the file.
        bit: the bit in the byte, 0 to 7.
        record: the record that has it; None in an index.
        offset: the first byte of that record; None in an index.
    """

    file: str
    byte: int
    bit: int
    record: int | None = None
    offset: int | None = None

    @classmethod
    def of_record(cls, shard: Path, record: int, region: str, bit: int) -> "Flip":
        """A bit of a region of a record, counted from the start of the region, modulo its number of bits."""
        offset, size = list(read_index(shard).pairs())[record]
        with open(shard, "rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
        end = size - records.FOOTER_BYTES
        image = data.index(b"\xff\xd8")
        first, stop = {
            "length": (0, 8),
            "length CRC": (8, records.HEADER_BYTES),
            "features": (records.HEADER_BYTES, image),
            "image": (image, end),
            "data CRC": (end, size),
        }[region]
        bit %= 8 * (stop - first)
        return cls(shard.name, offset + first + bit // 8, bit % 8, record, offset)

    def apply(self, folder: Path) -> None:
        """Flips the bit."""
        path = folder / self.file
        data = bytearray(path.read_bytes())
        data[self.byte] ^= 1 << self.bit
        path.write_bytes(data)


def draw_flips(folder: Path, regions: Sequence[str], seed: int) -> list[Flip]:
    """A random bit for each region of `regions`, in random shards."""
    rng = np.random.default_rng(seed)
    shards = sorted(path for path in folder.glob("*-?????-of-?????"))
    flips = []
    for region in regions:
        shard = shards[rng.integers(len(shards))]
        if region == "index":
            index = index_path(shard)
            flips.append(Flip(index.name, int(rng.integers(index.stat().st_size)), int(rng.integers(8))))
        else:
            record = int(rng.integers(read_index(shard).num_records))
            flips.append(Flip.of_record(shard, record, region, int(rng.integers(1 << 30))))
    return flips
