"""Shards of a gigabyte that take no room on the disk: their bytes are holes."""

import os
from pathlib import Path

import numpy as np

from pipelines import ShardSet


def sparse_shards(folder: Path, counts: list[int], largest: int = 300_000, seed: int = 0) -> ShardSet:
    """Makes shards of records of random lengths. They have no indexes, and nothing can be decoded.

    Args:
        folder: where the shards are written.
        counts: the number of records of each shard.
        largest: bytes of a record.
        seed: of the lengths.
    """
    rng = np.random.default_rng(seed)
    lengths = [rng.integers(1, largest, count) for count in counts]
    paths = tuple(folder / f"train-{number:05d}" for number in range(len(counts)))
    for path, sizes in zip(paths, lengths, strict=True):
        path.touch()
        os.truncate(path, int(sizes.sum()))
    return ShardSet(
        split="train",
        paths=paths,
        shard=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        offsets=np.concatenate([np.cumsum(sizes) - sizes for sizes in lengths]),
        lengths=np.concatenate(lengths),
        sizes=np.full((sum(counts), 2), 64, np.int32),
        usable=np.arange(sum(counts)),
        classes=("one", "two"),
        label_base=0,
    )
