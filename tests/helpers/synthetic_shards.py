"""Shard sets that exist in memory only, of any size: for tests of orders and plans."""

from pathlib import Path

import numpy as np

from pipelines import ShardSet


def synthetic_shards(
    records: int, shards: int = 10, *, record_bytes: int = 110_000, quarantined: int = 0, is_sorted: bool = False
) -> ShardSet:
    """A training split whose records all have the same length.

    Args:
        records: how many there are.
        shards: how many shards they are in, evenly.
        record_bytes: the framed length of each.
        quarantined: how many records are left out, the first ones.
        is_sorted: what dataset.json says about it.
    """
    shard = np.arange(records, dtype=np.int64) * shards // records
    return ShardSet(
        split="train",
        paths=tuple(Path(f"train-{number:05d}-of-{shards:05d}") for number in range(shards)),
        shard=shard.astype(np.int32),
        offsets=(np.arange(records) - np.searchsorted(shard, shard)) * record_bytes,
        lengths=np.full(records, record_bytes),
        sizes=np.full((records, 2), 500, np.int32),
        usable=np.arange(quarantined, records),
        classes=("a", "b"),
        label_base=1,
        is_sorted=is_sorted,
    )
