"""Writes one shard of a build, in a worker process. The shard is a pure function of its list of images."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import google_crc32c
import numpy as np

from pipelines.building.clean import CleanImage, ImageRejected, clean_image
from pipelines.building.leftovers import STATE_FOLDER
from pipelines.building.sources import Entry, Stamp
from pipelines.errors import UserError, reason
from pipelines.shards import records
from pipelines.shards.dataset import ClassInfo
from pipelines.shards.index import Index, read_index, write_index
from pipelines.system.ahead import read_ahead
from pipelines.system.files import atomic_writer, write_atomic

# At 2 ms a file they read 8,000 files/s for a process, which decodes about 500. At 10 ms they still read 1,600.
_READERS = 16
_MOST_BYTES = 16 << 20  # of files that wait for the decoder; more are not begun
LABEL_BASE = 1  # as in the original project, so that its shards and ours can be exchanged


@dataclass(frozen=True)
class ShardTask:
    """One shard to write.

    Attributes:
        path: the shard.
        entries: its images, in the order of the records.
        classes: all classes of the data set, in label order.
        short_side: see `BuildOptions`.
        quality: see `BuildOptions`.
    """

    path: Path
    entries: tuple[Entry, ...]
    classes: tuple[ClassInfo, ...]
    short_side: int | None
    quality: int

    @property
    def note(self) -> Path:
        """The file that keeps the result until the build is done."""
        return self.path.parent / STATE_FOLDER / f"{self.path.name}.json"

    def fingerprint(self) -> str:
        """A checksum of the list of images."""
        return digest(repr(tuple(entry)) for entry in self.entries)

    def stamps(self) -> str:
        """A checksum of the present stamps of the images' files; raises `OSError`."""
        known: dict[str, Stamp] = {}
        for entry in self.entries:
            if entry.file not in known:
                known[entry.file] = Stamp.of(entry.file)
        return digest(repr(tuple(known[entry.file])) for entry in self.entries)


@dataclass(frozen=True)
class ShardResult:
    """A shard that was written.

    Attributes:
        name: the file name.
        fingerprint: the checksum of the list of images.
        bytes: the size of the file.
        crc32c: the CRC-32C of the file, hexadecimal.
        sizes: height and width of each record's image, in pixels.
        reencoded: the number of images that were encoded again, by reason.
        rejected: (position in the task's entries, reason) of each file that is not in the shard.
        stamps: the checksum of the stamps that the images' files had when they were read.
    """

    name: str
    fingerprint: str
    bytes: int
    crc32c: str
    sizes: list[tuple[int, int]] = field(default_factory=list)
    reencoded: dict[str, int] = field(default_factory=dict)
    rejected: list[tuple[int, str]] = field(default_factory=list)
    stamps: str = ""


def write_shard(task: ShardTask) -> ShardResult:
    """Writes the shard, its index and its note, in this order, each whole or not at all.

    Raises:
        OSError: a file cannot be written.
        UserError: an image cannot be read from its disk.
    """
    task.note.unlink(missing_ok=True)
    sizes: list[tuple[int, int]] = []
    lengths: list[int] = []
    reencoded: Counter[str] = Counter()
    rejected: list[tuple[int, str]] = []
    stamps: list[Stamp] = []
    crc = 0
    files = read_ahead(_read, task.entries, _READERS, _file_bytes, _MOST_BYTES)
    with closing(files), atomic_writer(task.path) as stream:
        for position, (entry, (data, stamp)) in enumerate(zip(task.entries, files, strict=True)):
            stamps.append(stamp)
            try:
                image = clean_image(data, task.quality, task.short_side)
            except ImageRejected as error:
                rejected.append((position, str(error)))
                continue
            record = records.frame(records.encode_example(_features(entry, task.classes[entry.class_index], image)))
            stream.write(record)
            crc = google_crc32c.extend(crc, record)
            lengths.append(len(record))
            sizes.append((image.height, image.width))
            if image.reencoded:
                reencoded[image.reencoded] += 1
    if lengths:
        ends = np.cumsum(lengths, dtype=np.int64)
        write_index(task.path, Index(ends - lengths, np.array(lengths, np.int64)))
    result = ShardResult(
        task.path.name,
        task.fingerprint(),
        sum(lengths),
        f"{crc:08x}",
        sizes,
        dict(reencoded),
        rejected,
        digest(repr(tuple(stamp)) for stamp in stamps),
    )
    write_atomic(task.note, json.dumps(asdict(result)).encode())
    return result


def finished(task: ShardTask) -> ShardResult | None:
    """The result of a shard that an earlier run finished; None if it did not, or with other images.

    The content of the images may have changed since: see `unchanged`.
    """
    try:
        result = ShardResult(**json.loads(task.note.read_text(encoding="utf-8")))
        whole = task.path.stat().st_size == result.bytes and (not result.bytes or bool(read_index(task.path)))
    except (FileNotFoundError, UserError):
        return None
    return result if whole and result.fingerprint == task.fingerprint() else None


def unchanged(task: ShardTask, result: ShardResult) -> bool:
    """Whether the images of a finished shard have the sizes and times that they had when they were read."""
    try:
        return task.stamps() == result.stamps
    except OSError:  # writing the shard again names the file
        return False


def digest(parts: Iterable[str]) -> str:
    """SHA-256 of a list of texts. They may have file names in them that are not valid UTF-8."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(_utf8(part) + b"\0")
    return sha.hexdigest()


def _read(entry: Entry) -> tuple[bytes, Stamp]:
    """The file of an image and its stamp. Raises `UserError` if the disk cannot be read."""
    try:
        return entry.read_stamped()
    except OSError as error:  # a fault of the disk, not of the image: rejecting the image would lose it
        raise UserError(reason(error), path=entry.path, remedy="fix this and repeat the same command") from None


def _file_bytes(file: tuple[bytes, Stamp]) -> int:
    return len(file[0])


def _features(entry: Entry, info: ClassInfo, image: CleanImage) -> dict[str, records.FeatureValue]:
    """The features of the original project's records. Colour space and channels are those of the decoded image."""
    return {
        records.ENCODED: image.encoded,
        records.HEIGHT: image.height,
        records.WIDTH: image.width,
        records.COLORSPACE: b"RGB",
        records.CHANNELS: 3,
        records.FORMAT: b"JPEG",
        records.FILENAME: _utf8(entry.name),
        records.LABEL: entry.class_index + LABEL_BASE,
        records.SYNSET: _utf8(info.wnid or info.name),
        records.TEXT: _utf8(info.name),
    }


def _utf8(name: str) -> bytes:
    """A file name as the bytes on the disk, which may not be valid UTF-8."""
    return name.encode("utf-8", "surrogateescape")
