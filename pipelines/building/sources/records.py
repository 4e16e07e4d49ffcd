"""Shards as a source: a data set in TFRecords is built again, for example to encode its PNG images as JPEG.

The folder needs dataset.json, which `build_index` writes for shards of any writer. The bytes of an image are read from
the shard where they are.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipelines.building.sources.numbers import NO_LABEL
from pipelines.building.sources.part import Part
from pipelines.building.sources.source import Found, Listing, Place, RejectedFile
from pipelines.building.sources.tars import stamp_of
from pipelines.shards import records
from pipelines.shards.dataset import DATASET_FILE, DatasetInfo
from pipelines.shards.index import index_path
from pipelines.shards.shard_set import ShardSet
from pipelines.system.reading import map_file

_SPLITS = {"train": ("train",), "validation": ("validation", "test")}


def tf_records(root: Path) -> dict[str, Part]:
    """A folder with dataset.json and shards, as `build_shards` and `build_index` make it."""
    if not (root / DATASET_FILE).is_file():
        return {}
    info = DatasetInfo.load(root)
    parts = {}
    for split, names in _SPLITS.items():
        if name := next((name for name in names if name in info.splits), None):
            count = len(info.splits[name].shards)
            text = f"{count} {name} {'shard' if count == 1 else 'shards'} of TFRecords"
            shards = [root / shard.file for shard in info.splits[name].shards]
            beside = [root / DATASET_FILE, root / info.splits[name].sizes, *map(index_path, shards)]
            parts[split] = Part(text, (*shards, *beside), partial(_read, root, name))
    return parts


def _read(root: Path, split: str, _: Sequence[Path], __: Sequence[str] | None) -> Listing:
    names = class_keys(DatasetInfo.load(root))
    return Listing(_files(ShardSet.open(root, split), names), names, "given", names_repeat=True)


def class_keys(info: DatasetInfo) -> list[str]:
    """What tells the classes of a data set apart, in label order: the wnid, else the name, with a number if needed."""
    names = [item.wnid or item.name for item in info.classes]
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({label})" for label, name in enumerate(names)]


def _files(shards: ShardSet, names: Sequence[str]) -> Iterator[Found | RejectedFile]:
    usable = np.zeros(shards.num_records, bool)
    usable[shards.usable] = True
    for number, path in enumerate(shards.paths):
        place = Place(str(path), path.name, stamp_of(path))
        mapped = map_file(path)
        for record in np.flatnonzero(shards.shard == number).tolist():
            start = int(shards.offsets[record]) + records.HEADER_BYTES
            end = start + int(shards.lengths[record]) - records.HEADER_BYTES - records.FOOTER_BYTES
            if usable[record]:
                yield _file(shards, names, place, mapped, start, end)
            else:
                yield _at(place, start).rejected("in quarantine")


def _file(
    shards: ShardSet, names: Sequence[str], place: Place, mapped: memoryview, start: int, end: int
) -> Found | RejectedFile:
    """The image of the record whose data are between two bytes of a shard."""
    nothing = _at(place, start)
    try:
        features = records.decode_example(mapped[start:end])
    except ValueError as error:
        return nothing.rejected(str(error))
    encoded, label = features.get(shards.features.image), features.get(shards.features.label)
    if not isinstance(encoded, memoryview) or not encoded or not isinstance(label, int):
        return nothing.rejected("no image or no label")
    told = features.get(shards.features.filename)
    name = bytes(told).decode("utf-8", "surrogateescape") if isinstance(told, memoryview) else ""
    found = nothing._replace(
        name=name.rsplit("/", 1)[-1] or nothing.name, offset=_offset(encoded, mapped), length=len(encoded)
    )
    number = label - shards.label_base
    return found._replace(class_name=names[number]) if 0 <= number < len(names) else found.rejected(NO_LABEL)


def _at(place: Place, start: int) -> Found:
    return Found("", place, f"record at byte {start - records.HEADER_BYTES}")


def _offset(part: memoryview, whole: memoryview) -> int:
    """The first byte of a part of a view."""
    return int(np.frombuffer(part, np.uint8).ctypes.data - np.frombuffer(whole, np.uint8).ctypes.data)
