"""How a field of `AugmentSpec` declares an augmentation: neutral value, limits, columns of random numbers."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import Enum
from math import inf
from typing import Any

_KEY = "operation"  # in the metadata of a field


class Part(Enum):
    """What an operation changes."""

    CROP = "crop"
    MIRROR = "mirror"
    WARP = "warp"  # all other geometry: outside the image is black
    COLOUR = "colour"


@dataclass(frozen=True)
class Limits:
    """The values that a number may have.

    Attributes:
        low: the smallest value.
        high: the largest value. Infinity itself is never allowed.
        includes_low: whether `low` itself is allowed.
        unit: of the values, for messages.
    """

    low: float
    high: float
    includes_low: bool = True
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and value < inf and (self.includes_low or value > self.low)

    def __str__(self) -> str:
        left = "[" if self.includes_low else "("
        right = "]" if self.high < inf else ")"
        return f"{left}{self.low:g}, {self.high:g}{right}{self.unit and ' ' + self.unit}"


@dataclass(frozen=True)
class Operation:
    """One augmentation, as a field declares it.

    Attributes:
        neutral: the value that changes nothing. A tuple means that values are ranges (low, high).
        limits: the allowed values, for ranges those of both ends.
        columns: the columns of `RecordUniform` that it reads, one for each try. No two operations share one, so
            switching one off does not change the draws of the others.
        part: what it changes. None for a field that changes nothing by itself, such as a probability.
        chance: the field with the probability that it is applied; "" if it is always applied.
    """

    neutral: Any
    limits: Limits
    columns: tuple[int, ...]
    part: Part | None
    chance: str = ""

    def problem(self, value: Any) -> str:
        """What is wrong with a value, or ""."""
        if value == self.neutral:
            return ""
        if isinstance(self.neutral, tuple):
            low, high = value
            if not (low <= high and low in self.limits and high in self.limits):
                return f"must be a range (low, high) within {self.limits}, not {low}…{high}"
        elif value not in self.limits:
            return f"must be in {self.limits}, not {value}"
        return ""


def declare(
    neutral: Any, limits: Limits, part: Part | None = None, columns: Iterable[int] = (), chance: str = ""
) -> Any:
    """Declares a field of a dataclass as an `Operation`, with the neutral value as its default."""
    return field(default=neutral, metadata={_KEY: Operation(neutral, limits, tuple(columns), part, chance)})


def operations(spec: Any) -> dict[str, Operation]:
    """The operations that the fields of a dataclass declare, by name."""
    return {declared.name: declared.metadata[_KEY] for declared in fields(spec) if _KEY in declared.metadata}
