"""The settings that all questions share."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench.timing import Candidate
from pipelines import AugmentSpec, BatchSpec, ShardSet, open_loader
from pipelines.loader import READ_AHEAD, Loader

AUGMENTS = ("full", "standard", "evaluation")

# Longer than any turn, and long enough to be shuffled in blocks, as ImageNet is.
LONG_EPOCH = 64_000


@dataclass(frozen=True)
class Settings:
    """One set of values of the flags.

    Attributes:
        shards: the data set.
        loaders: names of the loaders.
        augments: names of augmentations, of `AUGMENTS`.
        dtypes: dtypes of the images.
        batch_size: images in a batch.
        image_size: pixels of a side.
        workers: threads of a loader or peer.
        prefetch: batches that a loader prepares ahead.
        device: "cpu" or "gpu", where dali decodes.
        rounds: turns of each candidate.
        seconds: length of a turn, without warm-up.
        short: skip the parts that take minutes.
        second: another data set to compare with `shards`, or None.
        cases: kinds of storage, of `bench.storage.cases.CASES`; empty: all.
        peers: peers to compare with; None: all that work on this machine.
        may_change: whether the question `storage` may limit disks and mount views.
        read_ahead: records that our loaders fetch ahead from storage.
        compare_read_ahead: whether `storage` also measures our loaders with nothing fetched ahead.
    """

    shards: ShardSet
    loaders: tuple[str, ...]
    augments: tuple[str, ...] = ("full", "standard")
    dtypes: tuple[str, ...] = ("float32",)
    batch_size: int = 64
    image_size: int = 224
    workers: int = 1
    prefetch: int = 2
    device: str = "cpu"
    rounds: int = 3
    seconds: float = 2.0
    short: bool = False
    second: ShardSet | None = None
    cases: tuple[str, ...] = ()
    peers: tuple[str, ...] | None = None
    may_change: bool = False
    read_ahead: int = READ_AHEAD
    compare_read_ahead: bool = False

    def stamp(self, **more: Any) -> dict[str, Any]:
        """The settings to store with a measurement; `more` is added to them."""
        return {
            "image_size": self.image_size,
            "batch_size": self.batch_size,
            "workers": self.workers,
            "prefetch": self.prefetch,
            "device": self.device,
        } | more

    def replace(self, **changes: Any) -> "Settings":
        """A copy with some values changed."""
        return replace(self, **changes)

    def open(self, name: str, augment: str | AugmentSpec, dtype: str = "float32", records: int = LONG_EPOCH) -> Loader:
        """Opens one of our loaders with these settings.

        Args:
            name: the loader.
            augment: the augmentation or its name.
            dtype: of the images.
            records: the minimum number of records in an epoch; records are repeated to reach it.
        """
        return open_loader(
            name,
            stretched(self.shards, records),
            BatchSpec(self.batch_size, self.image_size, dtype),
            named_augment(augment) if isinstance(augment, str) else augment,
            workers=self.workers,
            prefetch=self.prefetch,
            device=self.device,
            strict=True,
            read_ahead=self.read_ahead,
        )

    def candidate(
        self,
        name: str,
        loader: str,
        augment: str | AugmentSpec,
        dtype: str = "float32",
        records: int = LONG_EPOCH,
    ) -> Candidate:
        """One of our loaders as a candidate for the timer; arguments as for `open`."""

        def stream() -> Generator[int, None, None]:
            with self.open(loader, augment, dtype, records) as opened:
                epoch = 0
                while True:
                    batches = iter(opened.epoch(epoch))
                    for _ in range(opened.steps_per_epoch):
                        next(batches)
                        yield self.batch_size
                    epoch += 1

        return Candidate(name, stream, self.prefetch + 2)


def named_augment(name: str) -> AugmentSpec:
    """The augmentation of a name that recipes use, or of "evaluation"."""
    return AugmentSpec.evaluation() if name == "evaluation" else AugmentSpec.named(name)


def stretched(shards: ShardSet, records: int) -> ShardSet:
    """The same shards again and again, so that an epoch has at least `records`, each equally often.

    Neighbours are those of the shards: where orders read blocks of neighbours, a block must not be one image.
    """
    copies = -(-records // len(shards.usable))
    copy = np.arange(copies)[:, None]
    return replace(
        shards,
        paths=shards.paths * copies,
        shard=(shards.shard + copy.astype(np.int32) * len(shards.paths)).ravel(),
        offsets=np.tile(shards.offsets, copies),
        lengths=np.tile(shards.lengths, copies),
        sizes=np.tile(shards.sizes, (copies, 1)),
        usable=(shards.usable + copy * shards.num_records).ravel(),
    )
