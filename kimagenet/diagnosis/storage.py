"""Does the storage of a data set feed the loader? Compares the records it delivers with those that are decoded."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from kimagenet.diagnosis.findings import Finding
from kimagenet.diagnosis.reads import Reads, measure_reads, open_split, read_in, sample
from kimagenet.diagnosis.trials import rate_of
from pipelines import loaders
from pipelines.augment import AugmentSpec
from pipelines.loader import BatchSpec
from pipelines.system.limits import memory_bytes

_BATCH, _IMAGE_SIZE = 64, 224
_KEPT = 0.05  # a larger share of pages that stay in memory makes the figures meaningless
_IN_MEMORY = 0.7  # of the machine's memory: shards below this share stay in the page cache
_DECODED = 2048  # records that the loader decodes: it repeats them, and they are read from memory


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        reads: records/s that the storage delivers.
        decoded: images/s of the loader, from memory.
        loader: which one.
        record_bytes: mean size of a record.
        shards_bytes: size of all records of the split.
        memory: bytes that this process may use.
    """

    reads: Reads
    decoded: float
    loader: str
    record_bytes: float
    shards_bytes: int
    memory: int


def trial(directory: Path, seconds: float) -> Iterator[Finding]:
    """Measures the storage of a data set for some seconds, and the loader `auto` on records in memory for as many.

    Raises:
        UserError: the data set cannot be opened.
        OSError: a shard cannot be read.
    """
    shards = open_split(directory)
    reads = measure_reads(shards, seconds)
    few = dataclasses.replace(shards, usable=sample(shards)[:_DECODED])
    read_in(few, few.usable)
    device = loaders.resolve_device("auto")
    name = loaders.choose("auto", device, strict=False).loader
    batch = BatchSpec(min(_BATCH, len(few.usable)), _IMAGE_SIZE)
    with loaders.open_loader(name, few, batch, AugmentSpec.train(), device=device) as loader:
        decoded, _ = rate_of(loader, seconds)
    lengths = shards.lengths[shards.usable]
    yield judge(Figures(reads, decoded, name, float(lengths.mean()), int(lengths.sum()), memory_bytes()))


def judge(found: Figures) -> Finding:
    """Judges a storage by its figures: one line, with a remedy if the loader would wait for it."""
    reads, numbers = found.reads, _numbers(found)
    loader = f"{found.loader} decodes {found.decoded:,.0f} records/s from memory"
    if reads.kept is not None and reads.kept > _KEPT:
        kept = f"{reads.kept:.0%} of the pages stay in memory when they are dropped"
        text = f"{kept}, so the storage cannot be measured; {loader}"
        return Finding("storage", "note", text, "end programs that read it; /dev/shm is memory, not storage", numbers)
    ahead, in_order = reads.scattered_ahead, reads.in_order_ahead
    unknown = " (the pages may have stayed in memory: the shards belong to another user)" if reads.kept is None else ""
    text = (
        f"{ahead:,.0f} records/s ({ahead * found.record_bytes / 1e6:,.0f} MB/s) scattered and read ahead, "
        f"{reads.scattered:,.0f} one at a time; in order {in_order:,.0f} and {reads.in_order:,.0f}{unknown}; {loader}: "
    )
    if ahead >= found.decoded:
        return Finding("storage", "fine", text + "it feeds the loader", figures=numbers)
    if fits(found):
        text += (
            f"it is slower than the loader, but the {found.shards_bytes / 1e9:.1f} GB stay in memory after one epoch"
        )
        return Finding("storage", "fine", text, figures=numbers)
    if in_order >= found.decoded:
        text += "it feeds the loader only with records in order"
    else:
        text += f"it feeds {max(ahead, in_order) / found.decoded:.0%} of the loader"
    return Finding("storage", "note", text, 'see docs/storage.md, "When data wait is high"', numbers)


def fits(found: Figures) -> bool:
    """Whether the shards stay in memory once they were read."""
    return found.shards_bytes < _IN_MEMORY * found.memory


def _numbers(found: Figures) -> dict[str, float]:
    reads = {f"{name}_records_per_second": value for name, value in vars(found.reads).items() if name != "kept"}
    kept = {} if found.reads.kept is None else {"pages_kept": found.reads.kept}
    return reads | kept | {"decoded_records_per_second": found.decoded, "record_bytes": found.record_bytes}
