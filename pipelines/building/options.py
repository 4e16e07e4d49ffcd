"""How shards are made, and how many of them: as the user says, or as the bytes need."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipelines.building.sample import Sample, take_sample
from pipelines.building.sources import Source
from pipelines.ranges import check_ranges, within

MIN_RECORDS_PER_SHARD = 64
# 128 MB are read in many long requests, and copied or checked again in a second. Sixteen shards keep as many processes
# busy, and let ranks read from different files. More than 1,024 files help nobody.
SHARD_BYTES = 128_000_000
FEWEST_SHARDS, MOST_SHARDS = 16, {"train": 1024, "validation": 128}
_MOST_NAMES = 99_999  # the digits in the name of a shard


@dataclass(frozen=True)
class BuildOptions:
    """How shards are made. The same source and options give the same bytes with any number of workers.

    Attributes:
        train_shards: number of training shards; fewer if a shard would have fewer than MIN_RECORDS_PER_SHARD images.
            None: as many as their bytes need, see `decide`.
        validation_shards: the same for validation.
        short_side: images with a longer shorter side are shrunk to this one, in pixels; None keeps all sizes.
        quality: JPEG quality of images that are encoded again, 1 to 100.
        seed: seed of the shuffle.
        validation_share: share of each class that is taken from training for validation; see `holdout`.

    Raises:
        UserError: a value is out of range.
    """

    train_shards: int | None = field(default=None, metadata=within(at_least=1, at_most=_MOST_NAMES))
    validation_shards: int | None = field(default=None, metadata=within(at_least=1, at_most=_MOST_NAMES))
    short_side: int | None = field(default=None, metadata=within(at_least=1))
    quality: int = field(default=95, metadata=within(at_least=1, at_most=100))
    seed: int = field(default=0, metadata=within(at_least=0))
    validation_share: float = field(default=0.0, metadata=within(at_least=0, below=1))

    def __post_init__(self) -> None:
        check_ranges(self)

    def content(self) -> dict[str, Any]:
        """The options for a plan and for dataset.json; a share only if there is one, as in earlier releases."""
        return {name: value for name, value in asdict(self).items() if value or name != "validation_share"}

    @property
    def is_decided(self) -> bool:
        """Whether there is a number of shards for each split."""
        return None not in (self.train_shards, self.validation_shards)

    def wanted(self, split: str) -> int | None:
        """The number of shards for a split, however many images it has."""
        return {"train": self.train_shards, "validation": self.validation_shards}[split]

    def num_shards(self, split: str, images: int) -> int:
        """The number of shards for a split of `images` images. The options have to be decided."""
        wanted = self.wanted(split)
        assert wanted is not None
        return max(1, min(wanted, images // MIN_RECORDS_PER_SHARD))


def default_shards(split: str, num_bytes: float) -> int:
    """The number of shards for the records of a split, if the user does not say one."""
    return min(MOST_SHARDS[split], max(FEWEST_SHARDS, math.ceil(num_bytes / SHARD_BYTES)))


def decide(options: BuildOptions, source: Source, samples: Mapping[str, Sample | None]) -> BuildOptions:
    """Decides how many shards there will be where the options do not say it.

    Args:
        options: how shards are made.
        source: the images and their classes.
        samples: for each split what `take_sample` found.

    Returns:
        The options with a number for each split, also for one that the source does not have.
    """
    numbers = {}
    for split in MOST_SHARDS:
        if options.wanted(split) is None:
            sample = samples.get(split)
            num_bytes = len(source.splits[split]) * sample.image_bytes if sample else 0
            numbers[f"{split}_shards"] = default_shards(split, num_bytes)
    return replace(options, **numbers)


def samples_of(source: Source, options: BuildOptions) -> dict[str, Sample | None]:
    """A sample of each split's images as these options store them."""
    return {
        split: take_sample(entries, options.quality, options.short_side) for split, entries in source.splits.items()
    }


def as_planned(options: BuildOptions, plan: Mapping[str, Any]) -> BuildOptions:
    """The options with the numbers of shards of an unfinished build, where they have none themselves.

    Args:
        options: how shards are made.
        plan: the plan of the unfinished build; empty if there is none.
    """
    planned = plan.get("options", {})
    names = [f"{split}_shards" for split in MOST_SHARDS if options.wanted(split) is None]
    return replace(options, **{name: planned[name] for name in names if name in planned})
