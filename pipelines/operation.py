"""How a field of `AugmentSpec` declares an augmentation: neutral value, limits, columns of random numbers."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from pipelines.ranges import Range

_KEY = "operation"  # in the metadata of a field


class Part(Enum):
    """What an operation changes."""

    CROP = "crop"
    MIRROR = "mirror"
    WARP = "warp"  # all other geometry: outside the image is black
    COLOUR = "colour"
    ANY = "any"


@dataclass(frozen=True)
class Operation:
    """One augmentation, as a field declares it.

    Attributes:
        neutral: the value that changes nothing. A tuple means that values are ranges (low, high).
        limits: the allowed values, for ranges those of both ends. None for a value that checks itself.
        columns: the columns of `RecordUniform` that it reads, one for each try. No two operations share one, so
            switching one off does not change the draws of the others.
        part: what it changes. None for a field that changes nothing by itself, such as a probability.
        chance: the field with the probability that it is applied; "" if it is always applied.
    """

    neutral: Any
    limits: Range | None
    columns: tuple[int, ...]
    part: Part | None
    chance: str = ""

    def problem(self, value: Any) -> str:
        """What is wrong with a value, or ""."""
        if self.limits is None or value == self.neutral:
            return ""
        if not isinstance(self.neutral, tuple):
            problem = self.limits.problem(value)
            return problem and f"{problem}, not {value}"
        low, high = value
        problem = self.limits.problem(low) or self.limits.problem(high)
        if not problem and low > high:
            problem = "must be a range (low, high)"
        return problem and f"{problem}, not {low}…{high}"


def declare(
    neutral: Any, limits: Range | None, part: Part | None = None, columns: Iterable[int] = (), chance: str = ""
) -> Any:
    """Declares a field of a dataclass as an `Operation`, with the neutral value as its default."""
    return field(default=neutral, metadata={_KEY: Operation(neutral, limits, tuple(columns), part, chance)})


def operations(spec: Any) -> dict[str, Operation]:
    """The operations that the fields of a dataclass, or of an instance of one, declare, by name."""
    return {declared.name: declared.metadata[_KEY] for declared in fields(spec) if _KEY in declared.metadata}
