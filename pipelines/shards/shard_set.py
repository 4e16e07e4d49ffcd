"""ShardSet: one split's shards with their indexes and image sizes, checked before anything is read from them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.errors import UserError
from pipelines.shards import records
from pipelines.shards.dataset import DatasetInfo, SplitInfo
from pipelines.shards.index import read_index
from pipelines.system.files import atomic_writer
from pipelines.system.reading import read_bytes

MOST_PIXELS = 89_478_485  # of an image: beyond, Pillow, and so the builder, takes it for a decompression bomb


@dataclass(frozen=True, eq=False)
class ShardSet:
    """The records of one split. Records are numbered 0 … num_records−1 through all shards, in file order.

    Attributes:
        split: "train", "validation", …
        paths: the shard files.
        shard: int32 [N], the number of the shard each record lies in.
        offsets, lengths: int64 [N], the record's first byte in its shard and its framed length.
        sizes: int32 [N, 2], height and width of each image in pixels.
        usable: int64 [M], the records that may be planned: all but the quarantined ones.
        classes: names in label order.
        label_base: what a record's label is for the first class.
    """

    split: str
    paths: tuple[Path, ...]
    shard: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    sizes: np.ndarray
    usable: np.ndarray
    classes: tuple[str, ...]
    label_base: int

    @property
    def num_records(self) -> int:
        """Records in all shards, quarantined ones included."""
        return len(self.offsets)

    @cached_property
    def usable_starts(self) -> np.ndarray:
        """int64 [S + 1]: where in `usable` the records of each shard that has some begin, and M."""
        shard = self.shard[self.usable]
        return np.concatenate([[0], np.flatnonzero(np.diff(shard)) + 1, [len(shard)]])

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @classmethod
    def open(cls, directory: str | Path, split: str) -> "ShardSet":
        """Opens and checks a split. Raises `UserError`, naming the file and the remedy, if anything is missing,
        stale or truncated."""
        directory = Path(directory).expanduser().absolute()
        info = DatasetInfo.load(directory)
        if split not in info.splits:
            raise UserError(f"{directory}: no split {split!r}; there are: {', '.join(sorted(info.splits))}")
        part = info.splits[split]
        paths = tuple(directory / shard.file for shard in part.shards)
        indexes = [
            _checked_index(path, known.records, known.bytes) for path, known in zip(paths, part.shards, strict=True)
        ]
        counts = [index.num_records for index in indexes]
        num_records = sum(counts)
        quarantine = np.array(part.quarantine, np.int64)
        if np.any(quarantine >= num_records):
            raise UserError(f"{directory}: dataset.json quarantines a record that the {split} split does not have")
        usable = np.delete(np.arange(num_records), quarantine)
        if not len(usable):
            raise UserError(f"{directory}: every record of the {split} split is quarantined; build the shards again")
        return cls(
            split=split,
            paths=paths,
            shard=np.repeat(np.arange(len(paths), dtype=np.int32), counts),
            offsets=np.concatenate([index.offsets for index in indexes]),
            lengths=np.concatenate([index.sizes for index in indexes]),
            sizes=read_sizes(directory, split, part),
            usable=usable,
            classes=tuple(info_class.name for info_class in info.classes),
            label_base=info.label_base,
        )

    def read(self, record: int) -> "StoredImage":
        """A record's JPEG and label; raises `UserError` if it has none, `OSError` if its shard cannot be read.

        Its shard is opened anew each time: a thousand shards must not hold a thousand descriptors.
        """
        path = self.paths[self.shard[record]]
        length = int(self.lengths[record]) - records.HEADER_BYTES - records.FOOTER_BYTES
        data = read_bytes(path, int(self.offsets[record]) + records.HEADER_BYTES, length)
        features = records.decode_example(memoryview(data))
        encoded, label = features.get(records.ENCODED), features.get(records.LABEL)
        if not isinstance(encoded, memoryview) or not isinstance(label, int):
            raise UserError(f"{path}: the record at byte {self.offsets[record]} has no image or no label")
        return StoredImage(bytes(encoded), label)


class StoredImage(NamedTuple):
    """What loaders read of a record; `label` as it is stored, from `ShardSet.label_base` on."""

    encoded: bytes
    label: int


def write_sizes(path: Path, sizes: np.ndarray) -> None:
    """Writes the sidecar of image sizes: int32 [N, 2], height and width in pixels, in record order."""
    with atomic_writer(path) as stream:
        np.save(stream, np.asarray(sizes, np.int32), allow_pickle=False)


def _checked_index(path: Path, records: int, num_bytes: int):
    if not path.exists():
        raise UserError(f"{path}: the shard is missing; copy or build it again")
    if (found := path.stat().st_size) != num_bytes:
        raise UserError(
            f"{path}: the shard has {found:,} bytes, dataset.json says {num_bytes:,}: "
            f"copy or build it again, or accept it with `python -m tools.build_index {path.parent}`"
        )
    index = read_index(path)
    if index.num_records != records:
        raise UserError(
            f"{path}.idx: the index lists {index.num_records:,} records, dataset.json says {records:,}; "
            f"run `python -m tools.build_index {path.parent}`"
        )
    return index


def read_sizes(directory: Path, split: str, part: SplitInfo) -> np.ndarray:
    """The sidecar of image sizes, int32 [N, 2]; raises `UserError` if it does not fit or an image is absurdly large."""
    path = directory / part.sizes
    remedy = f"run `python -m tools.build_index {directory}`"
    try:
        sizes = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or 'cannot be read'}; {remedy}") from None
    except (ValueError, EOFError):
        raise UserError(f"{path}: not a table of image sizes; {remedy}") from None
    if sizes.dtype != np.int32 or sizes.shape != (part.num_records, 2) or np.any(sizes < 1):
        raise UserError(f"{path}: image sizes do not fit the shards; {remedy}")
    areas = sizes[:, 0].astype(np.int64) * sizes[:, 1]
    if areas[most := int(areas.argmax())] > MOST_PIXELS:
        height, width = sizes[most]
        raise UserError(
            f"{path}: record {most} of {split} has an image of {height:,} × {width:,} pixels; build it again"
        )
    return sizes
