"""What every question is asked with."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench.timing import Candidate
from pipelines import AugmentSpec, BatchSpec, ShardSet, open_loader
from pipelines.loader import Loader

AUGMENTS = ("full", "standard", "evaluation")

# An epoch that no turn reaches the end of, and long enough to be shuffled in blocks as ImageNet is.
_LONG_EPOCH = 64_000


@dataclass(frozen=True)
class Settings:
    """One set of values of the flags.

    Attributes:
        shards: as they are. second: other shards to be measured beside them, or None.
        seconds: of a turn, warm-up not counted. short: leave out what takes minutes.
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

    def stamp(self, **more: Any) -> dict[str, Any]:
        """What belongs into a measurement's settings."""
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

    def open(self, name: str, augment: str | AugmentSpec, dtype: str = "float32", records: int = _LONG_EPOCH) -> Loader:
        """One of our loaders over at least so many records an epoch, with these settings."""
        return open_loader(
            name,
            stretched(self.shards, records),
            BatchSpec(self.batch_size, self.image_size, dtype),
            named_augment(augment) if isinstance(augment, str) else augment,
            workers=self.workers,
            prefetch=self.prefetch,
            device=self.device,
            strict=True,
        )

    def candidate(self, name: str, loader: str, augment: str | AugmentSpec, dtype: str = "float32") -> Candidate:
        """One of our loaders as something to be timed."""

        def stream() -> Generator[int, None, None]:
            with self.open(loader, augment, dtype) as opened:
                epoch = 0
                while True:
                    batches = iter(opened.epoch(epoch))
                    for _ in range(opened.steps_per_epoch):
                        next(batches)
                        yield self.batch_size
                    epoch += 1

        return Candidate(name, stream, self.prefetch + 2)


def named_augment(name: str) -> AugmentSpec:
    """Recipes' names, and "evaluation"."""
    return AugmentSpec.evaluation() if name == "evaluation" else AugmentSpec.named(name)


def stretched(shards: ShardSet, records: int) -> ShardSet:
    """The same shards, each record planned as often as it takes to make an epoch of at least `records`."""
    copies = -(-records // len(shards.usable))
    return replace(shards, usable=np.repeat(shards.usable, copies))
