"""ShardSet: one split's shards with their indexes and image sizes, checked before anything is read from them."""

import io
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.errors import UserError
from pipelines.shards import records, remedies
from pipelines.shards.dataset import DATASET_FILE, USUAL_FEATURES, DatasetInfo, Features, ShardInfo, SplitInfo
from pipelines.shards.index import Index, index_path, read_index
from pipelines.shards.labels import read_classes
from pipelines.system.ahead import read_ahead
from pipelines.system.files import user_path, write_own
from pipelines.system.reading import NotRegular, read_bytes, read_file

_OPEN_THREADS = 64  # a network file system answers many requests at once: 1,000 shards wait for 16 answers, not 1,000
# Of an image: 200-megapixel cameras are in use. Pillow's limit against decompression bombs is 89 million.
MOST_PIXELS = 250_000_000


@dataclass(frozen=True, eq=False)
class ShardSet:
    """The records of one split, numbered 0 … num_records − 1 through all shards, in file order.

    Attributes:
        split: "train", "validation", …
        paths: the shard files.
        shard: int32 [N], the number of each record's shard, ascending.
        offsets: int64 [N], the record's first byte in its shard.
        lengths: int64 [N], its framed length in bytes.
        sizes: int32 [N, 2], height and width of each image in pixels.
        usable: int64 [M], the records that may be planned: all except the quarantined ones.
        classes: names in label order.
        label_base: the stored label of the first class.
        is_sorted: whether neighbours are of the same class more often than in shuffled shards, by dataset.json.
        features: the names of the records' features.
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
    is_sorted: bool = False
    features: Features = USUAL_FEATURES

    @property
    def num_records(self) -> int:
        """Records in all shards, quarantined ones included."""
        return len(self.offsets)

    @cached_property
    def usable_starts(self) -> np.ndarray:
        """int64 [S + 1]: where in `usable` the records of each shard that has some begin, and M."""
        shard = self.shard[self.usable]
        return np.concatenate([[0], np.flatnonzero(np.diff(shard)) + 1, [len(shard)]])

    @cached_property
    def labels(self) -> np.ndarray:
        """int32 [N]: the class of each record from 0, −1 for quarantined ones. Reads all shards when first used.

        Raises:
            UserError: a shard cannot be read, or a record has no label or one of no class.
        """
        where = (self.paths, self.shard, self.offsets, self.lengths)
        return read_classes(*where, self.usable, self.label_base, self.num_classes, self.features.label)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @classmethod
    def open(cls, directory: str | Path, split: str) -> "ShardSet":
        """Opens and checks a split. No image is read.

        Args:
            directory: the folder with dataset.json.
            split: its name there.

        Raises:
            UserError: a file is missing, stale or truncated.
        """
        directory = user_path(directory).absolute()
        info = DatasetInfo.load(directory)
        if split not in info.splits:
            remedy = f"choose one of {', '.join(sorted(info.splits))}" if info.splits else ""
            raise UserError(f"no split {split!r}", path=directory, remedy=remedy, setting="split")
        part = info.splits[split]
        paths = tuple(directory / shard.file for shard in part.shards)
        pairs = list(zip(paths, part.shards, strict=True))
        indexes = list(read_ahead(_checked_index, pairs, _OPEN_THREADS))
        counts = [index.num_records for index in indexes]
        num_records = sum(counts)
        quarantine = np.array(part.quarantine, np.int64)
        if np.any(quarantine >= num_records):
            what = f"quarantines a record that the {split} split does not have"
            remedy = f"remove the file and run {remedies.build_index(directory)}"
            raise UserError(what, path=directory / DATASET_FILE, remedy=remedy)
        usable = np.delete(np.arange(num_records), quarantine)
        if not len(usable):
            what = f"every record of the {split} split is quarantined"
            raise UserError(what, path=directory, remedy="build the shards again")
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
            is_sorted=part.is_sorted,
            features=info.features,
        )

    def read(self, record: int) -> "StoredImage":
        """Reads a record's JPEG and label.

        The shard is opened each time, because a thousand shards must not hold a thousand descriptors.

        Raises:
            UserError: the record has no image or no label.
            ValueError: its bytes are not a `tf.train.Example`.
            OSError: its shard cannot be read.
        """
        path = self.paths[self.shard[record]]
        length = int(self.lengths[record]) - records.HEADER_BYTES - records.FOOTER_BYTES
        data = read_bytes(path, int(self.offsets[record]) + records.HEADER_BYTES, length)
        features = records.decode_example(memoryview(data))
        encoded, label = features.get(self.features.image), features.get(self.features.label)
        if not isinstance(encoded, memoryview) or not isinstance(label, int):
            raise UserError(f"the record at byte {self.offsets[record]} has no image or no label", path=path)
        return StoredImage(bytes(encoded), label)


class StoredImage(NamedTuple):
    """What loaders read of a record.

    Attributes:
        encoded: the JPEG.
        label: as stored, from `ShardSet.label_base` on.
    """

    encoded: bytes
    label: int


def write_sizes(path: Path, sizes: np.ndarray) -> None:
    """Writes the file of image sizes: int32 [N, 2], height and width in pixels, in record order."""
    np.save(stream := io.BytesIO(), np.asarray(sizes, np.int32), allow_pickle=False)
    write_own(path, stream.getvalue())


def _checked_index(pair: tuple[Path, ShardInfo]) -> Index:
    """The index of a shard that is as dataset.json says. It asks for as little as possible: size, index, no pixel."""
    path, known = pair
    try:
        num_bytes = os.stat(path).st_size
    except FileNotFoundError:
        raise UserError("the shard is missing", path=path, remedy="copy or build it again") from None
    if num_bytes != known.bytes:
        remedy = f"copy or build it again, or accept it with {remedies.build_index(path.parent)}"
        what = f"the shard has {num_bytes:,} bytes, dataset.json says {known.bytes:,}"
        raise UserError(what, path=path, remedy=remedy)
    index = read_index(path, num_bytes)
    if index.num_records != known.records:
        what = f"the index lists {index.num_records:,} records, dataset.json says {known.records:,}"
        raise UserError(what, path=index_path(path), remedy=f"run {remedies.build_index(path.parent)}")
    return index


def read_sizes(directory: Path, split: str, part: SplitInfo) -> np.ndarray:
    """Reads the file of image sizes of a split.

    Returns:
        int32 [N, 2]: height and width in pixels, in record order.

    Raises:
        UserError: the file is missing or does not fit the shards, or an image has more than `MOST_PIXELS`.
    """
    path = directory / part.sizes
    remedy = f"run {remedies.build_index(directory)}"
    try:
        sizes = np.load(io.BytesIO(read_file(path)), allow_pickle=False)
    except OSError as error:
        remedy = f"remove it and {remedy}" if isinstance(error, NotRegular) else remedy
        raise UserError(error.strerror or "cannot be read", path=path, remedy=remedy) from None
    except (ValueError, EOFError):
        raise UserError("not a table of image sizes", path=path, remedy=remedy) from None
    if sizes.dtype != np.int32 or sizes.shape != (part.num_records, 2) or np.any(sizes < 1):
        raise UserError("the image sizes do not fit the shards", path=path, remedy=remedy)
    areas = sizes[:, 0].astype(np.int64) * sizes[:, 1]
    if areas[most := int(areas.argmax())] > MOST_PIXELS:
        height, width = sizes[most]
        what = f"record {most} of {split} has an image of {height:,} × {width:,} pixels, which is too large"
        raise UserError(what, path=path, remedy="build the shards again without this image")
    return sizes
