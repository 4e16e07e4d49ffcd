"""Writes a data set in the layouts of other projects: WebDataset tars or Parquet. Images stay byte for byte.

One file is written for each shard, whole or not at all. Labels count from 0. Quarantined records are left out.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from pipelines.building.sources.records import class_keys
from pipelines.errors import UserError, reason
from pipelines.shards import records
from pipelines.shards.dataset import DatasetInfo, Features
from pipelines.shards.shard_set import ShardSet
from pipelines.system.files import atomic_path, atomic_writer, user_path, write_atomic
from pipelines.system.processes import run_tasks
from pipelines.system.progress import Progress, silent
from pipelines.system.reading import read_bytes

Format = Literal["webdataset", "parquet"]
FORMATS: tuple[Format, ...] = ("webdataset", "parquet")
NAMES_FILE = "classnames.txt"
_ROWS = 100  # of a row group: about 10 MB of photos


@dataclass(frozen=True)
class ExportTask:
    """One shard to export.

    Attributes:
        shard: the shard.
        offsets: int64 [N], the first byte of each record that is exported.
        lengths: int64 [N], their framed lengths in bytes.
        numbers: int64 [N], their numbers in the split.
        features: the names of the records' features.
        label_base: the stored label of the first class.
        classes: in label order.
        path: the file to write.
        format: see `FORMATS`.
    """

    shard: Path
    offsets: np.ndarray
    lengths: np.ndarray
    numbers: np.ndarray
    features: Features
    label_base: int
    classes: tuple[str, ...]
    path: Path
    format: Format


class Exported(NamedTuple):
    """The result of an export.

    Attributes:
        records: split -> number of records that were written.
        left_out: split -> number of records in quarantine.
        files: number of files.
    """

    records: dict[str, int]
    left_out: dict[str, int]
    files: int


def export_shards(
    directory: str | Path, output: str | Path, form: Format, workers: int = 1, progress: Progress = silent
) -> Exported:
    """Exports all splits of a data set.

    Args:
        directory: the folder of shards.
        output: the folder to write; new or empty.
        form: "webdataset" or "parquet".
        workers: number of processes.
        progress: called with the number of records done.

    Returns:
        What was written.

    Raises:
        UserError: the data set cannot be read, the output is not empty or cannot be written, or pyarrow is missing.
    """
    directory, output = user_path(directory).absolute(), user_path(output).absolute()
    info = DatasetInfo.load(directory)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError("the folder is not empty", path=output, remedy="choose another output folder", setting="output")
    if form == "parquet":
        _pyarrow()
    classes = tuple(class_keys(info))
    opened = {split: ShardSet.open(directory, split) for split in info.splits}
    tasks = [task for split in opened for task in _tasks(opened[split], classes, output, form)]
    total, done = sum(len(task.offsets) for task in tasks), 0
    try:
        output.mkdir(parents=True, exist_ok=True)
        if form == "webdataset":
            write_atomic(output / NAMES_FILE, "".join(f"{name}\n" for name in classes).encode())
        progress("exporting", done, total)
        for count in run_tasks(_export, tasks, workers):
            done += count
            progress("exporting", done, total)
    except OSError as error:
        raise UserError(reason(error), path=error.filename or output) from None
    counts = {split: len(shards.usable) for split, shards in opened.items()}
    left_out = {split: shards.num_records - counts[split] for split, shards in opened.items()}
    return Exported(counts, left_out, len(tasks))


def _tasks(shards: ShardSet, classes: tuple[str, ...], output: Path, form: Format) -> Iterator[ExportTask]:
    number_of_shard = shards.shard[shards.usable]
    count = len(shards.paths)
    for number, path in enumerate(shards.paths):
        some = shards.usable[number_of_shard == number]
        names = {
            "webdataset": f"{shards.split}-{number:06d}.tar",
            "parquet": f"{shards.split}-{number:05d}-of-{count:05d}.parquet",
        }
        yield ExportTask(
            shard=path,
            offsets=shards.offsets[some],
            lengths=shards.lengths[some],
            numbers=some,
            features=shards.features,
            label_base=shards.label_base,
            classes=classes,
            path=output / names[form],
            format=form,
        )


def _export(task: ExportTask) -> int:
    """Writes one file; the number of its records."""
    (_write_tar if task.format == "webdataset" else _write_parquet)(task)
    return len(task.offsets)


class _Picture(NamedTuple):
    number: int
    name: str
    encoded: bytes
    label: int


def _pictures(task: ExportTask) -> Iterator[_Picture]:
    for offset, length, number in zip(task.offsets.tolist(), task.lengths.tolist(), task.numbers.tolist(), strict=True):
        framed = read_bytes(task.shard, offset, length)
        features = records.decode_example(memoryview(framed)[records.HEADER_BYTES : -records.FOOTER_BYTES])
        encoded, label, name = (
            features.get(key) for key in (task.features.image, task.features.label, task.features.filename)
        )
        if not isinstance(encoded, memoryview) or not isinstance(label, int):
            raise UserError(f"the record at byte {offset} has no image or no label", path=task.shard)
        text = bytes(name).decode("utf-8", "replace") if isinstance(name, memoryview) else ""
        yield _Picture(number, text or f"{number:08d}.jpg", bytes(encoded), label - task.label_base)


def _write_tar(task: ExportTask) -> None:
    with atomic_writer(task.path) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for picture in _pictures(task):
            told = json.dumps({"filename": picture.name, "label": picture.label}).encode()
            for suffix, data in (("jpg", picture.encoded), ("cls", b"%d" % picture.label), ("json", told)):
                member = tarfile.TarInfo(f"{picture.number:08d}.{suffix}")  # without time and owner: equal bytes
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them


def _write_parquet(task: ExportTask) -> None:
    pa, pq = _pyarrow()
    names = {"names": list(task.classes), "_type": "ClassLabel"}
    told = {"info": {"features": {"image": {"_type": "Image"}, "label": names}}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("label", pa.int64())], metadata={"huggingface": json.dumps(told)})
    with atomic_path(task.path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        rows: list[dict] = []
        for picture in _pictures(task):
            rows.append({"image": {"bytes": picture.encoded, "path": picture.name}, "label": picture.label})
            if len(rows) == _ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _pyarrow() -> tuple:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        what = "writing Parquet needs pyarrow, which is not installed"
        raise UserError(what, remedy="`pip install 'pyarrow>=18'`") from None
    return pyarrow, pyarrow.parquet
