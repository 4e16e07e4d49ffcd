"""Images in Parquet files, as Hugging Face publishes data sets: a column of images and one of labels.

An image is a struct of `bytes` and `path`, or plain bytes. Labels are numbers whose names are in the schema's metadata
(`ClassLabel`), or texts. The bytes of a column are compressed in pages, so the images are unpacked for the time of a
build: the copy of a file has the images one after the other, then a table of their names and labels.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from pipelines.building.sources import imagenet
from pipelines.building.sources.numbers import class_of, names_of_numbers
from pipelines.building.sources.part import Part
from pipelines.building.sources.source import Found, Listing, Place, RejectedFile
from pipelines.building.sources.splits import by_split, files_below, where
from pipelines.building.sources.spool import Scratch, unpacked
from pipelines.building.sources.tars import stamp_of
from pipelines.errors import UserError
from pipelines.system.limits import memory_bytes

_BUFFER = 1 << 20  # bytes of a column that are read at a time: a row group may have hundreds of megabytes
_ROWS = 32  # that are decoded at a time
# A page may be as large as its row group, and is in memory compressed, plain and as rows. All threads together take a
# quarter of the memory.
_COPIES, _MEMORY_SHARE = 3, 4
_LENGTH = 8  # bytes at the end of a copy: the length of the table before them
_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "image_bytes", "bytes")
_LABEL_NAMES = ("label", "labels", "class", "cls", "target")

_log = logging.getLogger(__name__)


class Columns(NamedTuple):
    """The columns of a Parquet file that are used.

    Attributes:
        image: the images.
        label: their labels.
        names: the name of each label that is a number, if the file has them.
    """

    image: str
    label: str
    names: tuple[str, ...] | None


def parquet(root: Path) -> dict[str, Part]:
    """train-00000-of-00002.parquet and so on, in the folder or below; the split is a word in the name or the folder."""
    parts = {}
    for split, paths in by_split(files_below(root, (".parquet",)), root).items():
        shown = [str(path.relative_to(root)) for path in paths]
        text = f"{len(paths)} {split} {'file' if len(paths) == 1 else 'files'} of Parquet{where(paths, root)}"
        parts[split] = Part(text, tuple(paths), partial(_read, paths, shown), tuple(paths), _unpack)
    return parts


def _unpack(paths: Sequence[Path], scratch: Scratch | None) -> list[Path]:
    largest = 1
    for path in paths:
        find_columns(path)  # before hours of work
        metadata = _opened(path).metadata
        largest = max(
            [largest, *(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))]
        )
    if scratch:
        threads = memory_bytes() // (_MEMORY_SHARE * _COPIES * largest)
        scratch = replace(scratch, workers=max(1, min(scratch.workers, threads)))
    return unpacked(paths, scratch, _write_copy, ".images")


def find_columns(path: Path) -> Columns:
    """Finds the images and their labels in the schema of a Parquet file.

    Raises:
        UserError: pyarrow is not installed, the file is damaged, or it has no such columns.
    """
    schema = _opened(path).schema_arrow
    features: dict[str, Any] = {}
    with suppress(KeyError, ValueError, TypeError):  # of another writer
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    image = _column(path, schema, [name for name, kind in kinds.items() if kind == "Image"], _IMAGE_NAMES, "image")
    label = _column(path, schema, [name for name, kind in kinds.items() if kind == "ClassLabel"], _LABEL_NAMES, "label")
    names = features.get(label, {}).get("names")
    return Columns(image, label, tuple(map(str, names)) if names else None)


def _column(path: Path, schema: Any, told: Sequence[str], usual: Sequence[str], kind: str) -> str:
    """The column of a kind: the one that the metadata tell, or one with a usual name."""
    there = list(schema.names)
    found = [name for name in usual if name in told] or list(told) or [name for name in usual if name in there]
    if not found:
        what = f"no column of {kind}s; it has the columns {', '.join(there)}"
        raise UserError(what, path=path, remedy=f"name the column of {kind}s {usual[0]}")
    if len(told) > 1:
        _log.warning("%s: of its columns of %ss (%s) %s is used", path, kind, ", ".join(told), found[0])
    return found[0]


def _opened(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        what = "reading Parquet needs pyarrow, which is not installed"
        raise UserError(what, path=path, remedy="`pip install 'pyarrow>=18'`") from None
    try:
        return pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    text = str(error).splitlines() or [type(error).__name__]
    return UserError(f"cut off or damaged ({text[0]})", path=path, remedy="download it again")


def _write_copy(path: Path, copy: BinaryIO, report: Callable[[int], None]) -> None:
    """Writes the images of a Parquet file one after the other, then the table of their names, labels and lengths."""
    columns = find_columns(path)
    names: list[str] = []
    labels: list[int | str | None] = []
    lengths: list[int] = []
    for data, name, label in _rows(path, columns, report):
        copy.write(data or b"")
        names.append(name or f"{path.stem}-{len(names):06d}")
        labels.append(label)
        lengths.append(-1 if data is None else len(data))
    table = json.dumps({"names": names, "labels": labels, "lengths": lengths}).encode()
    copy.write(table)
    copy.write(len(table).to_bytes(_LENGTH, "little"))


def _rows(
    path: Path, columns: Columns, report: Callable[[int], None]
) -> Iterator[tuple[bytes | None, str, int | str | None]]:
    """The image, file name and label of each row; no more than `_ROWS` rows are in memory."""
    import pyarrow

    file = _opened(path)
    done = 0
    try:
        for group in range(file.num_row_groups):
            batches = file.iter_batches(_ROWS, row_groups=[group], columns=[columns.image, columns.label])
            for batch in batches:
                images, labels = batch.column(columns.image), batch.column(columns.label)
                for number in range(batch.num_rows):
                    yield (*_image(path, images[number].as_py()), _label(path, labels[number].as_py()))
            meta = file.metadata.row_group(group)
            done += sum(meta.column(number).total_compressed_size for number in range(meta.num_columns))
            report(done)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from None
    finally:
        file.close()


def _image(path: Path, value: Any) -> tuple[bytes | None, str]:
    """The bytes of an image, and the name of its file if the row has one."""
    if isinstance(value, dict):
        name = value.get("path")
        return value.get("bytes"), PurePosixPath(name).name if isinstance(name, str) else ""
    if value is None or isinstance(value, bytes):
        return value, ""
    what = f"its images are {type(value).__name__}, not encoded files"
    raise UserError(what, path=path, remedy="store the bytes of JPEG or PNG files")


def _label(path: Path, value: Any) -> int | str | None:
    if value is None or isinstance(value, int | str):
        return value
    what = f"its labels are {type(value).__name__}, not one number or one name for each image"
    raise UserError(what, path=path, remedy="store one label for each image")


class _Row(NamedTuple):
    name: str
    label: int | str | None
    offset: int
    length: int


def _table(copy: Path) -> list[_Row]:
    """The rows of a copy."""
    with open(copy, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(os.pread(stream.fileno(), _LENGTH, size - _LENGTH), "little")
        found = json.loads(os.pread(stream.fileno(), length, size - _LENGTH - length))
    rows, offset = [], 0
    for name, label, count in zip(found["names"], found["labels"], found["lengths"], strict=True):
        rows.append(_Row(name, label, offset, count))
        offset += max(0, count)
    return rows


def _read(paths: Sequence[Path], shown: Sequence[str], copies: Sequence[Path], _: Sequence[str] | None) -> Listing:
    told = find_columns(paths[0]).names
    for path in paths[1:]:
        if find_columns(path).names != told:
            what = f"its classes are numbered differently than those of {paths[0].name}"
            raise UserError(what, path=path, remedy="choose files of one data set")
    first = _table(copies[0])
    labelled = [(row.label, row.name) for row in first if row.label not in (None, -1)]
    names = names_of_numbers(labelled, told)
    numbered = any(isinstance(label, int) for label, _ in labelled)
    return Listing(_files(copies, shown, names), names, "given" if names else "number" if numbered else "name", True)


def _files(copies: Sequence[Path], shown: Sequence[str], names: Sequence[str] | None) -> Iterator[Found | RejectedFile]:
    for copy, name_of_file in zip(copies, shown, strict=True):
        place = Place(str(copy), name_of_file, stamp_of(copy))
        for row in _table(copy):
            name = imagenet.split_name(row.name)[0] or row.name
            class_name, problem = class_of(row.label, names)
            found = Found(class_name, place, name, row.offset, row.length)
            if row.length < 0:
                yield found.rejected("the row has no bytes of an image")
            else:
                yield found.rejected(problem) if problem else found
