"""The names of shards, of this project and of other writers.

| writer | names |
|---|---|
| keras_imagenet, tf-models, NVIDIA's scripts, this project | train-00000-of-01024 |
| tensorflow-datasets | imagenet2012-train.tfrecord-00000-of-01024 |
| tf-slim | flowers_train_00000-of-00005.tfrecord |
| others | train-00000-of-00008.tfrecord, train.tfrecord-00000-of-00008 |
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

_NUMBERS = r"(?P<number>\d{5,})-of-(?P<count>\d{5,})"
_SUFFIX = r"\.(?:tfrecords?|tfrec)"
_KNOWN_SPLIT = "train|training|validation|valid|val|test"
_PATTERNS = tuple(
    re.compile(text)
    for text in (
        rf"(?P<head>(?P<split>[A-Za-z0-9_]+)-){_NUMBERS}(?P<tail>)",
        rf"(?P<head>(?:[A-Za-z0-9_]+-)?(?P<split>[A-Za-z0-9_]+){_SUFFIX}-){_NUMBERS}(?P<tail>)",
        rf"(?P<head>(?:[A-Za-z0-9_\-]+?[-_])?(?P<split>{_KNOWN_SPLIT})[-_]){_NUMBERS}(?P<tail>{_SUFFIX})",
        rf"(?P<head>(?P<split>[A-Za-z0-9_]+)-){_NUMBERS}(?P<tail>{_SUFFIX})",
    )
)


class ShardName(NamedTuple):
    """The parts of a shard's name.

    Attributes:
        split: "train", "validation", …
        head: the text before the numbers.
        tail: the text behind them.
        number: of the shard, from 0.
        total: how many shards its split has.
        digits: of the numbers.
    """

    split: str
    head: str
    tail: str
    number: int
    total: int
    digits: int

    def with_number(self, number: int) -> str:
        """The name of another shard of the same split."""
        return f"{self.head}{number:0{self.digits}d}-of-{self.total:0{self.digits}d}{self.tail}"

    @property
    def pattern(self) -> str:
        """The names of all shards of the split, for messages."""
        return f"{self.head}*-of-{self.total:0{self.digits}d}{self.tail}"


def parse(name: str) -> ShardName | None:
    """The parts of a shard's name; None if it is not one."""
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(name):
            number, count = match["number"], match["count"]
            return ShardName(match["split"], match["head"], match["tail"], int(number), int(count), len(count))
    return None


def shards_among(names: Iterable[str]) -> list[ShardName]:
    """The shards among some files."""
    return [found for name in names if (found := parse(name))]
