"""Ranges of numbers in dataclass fields: each is written once, beside its field. No TensorFlow."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from pipelines.errors import UserError

_KEY = "range"


@dataclass(frozen=True)
class Range:
    """The numbers that a field may have. NaN and infinity are in no range.

    Attributes:
        above: the value is greater than this.
        at_least: the value is this or greater.
        below: the value is less than this.
        at_most: the value is this or less.
        unit: of the values, for messages.
    """

    above: float = -math.inf
    at_least: float = -math.inf
    below: float = math.inf
    at_most: float = math.inf
    unit: str = ""

    def problem(self, value: float) -> str:
        """What is wrong with a value, as "must be at least 1", or "" if it is in the range."""
        if not -math.inf < value < math.inf:
            return "must be a finite number"
        checks = (
            ("greater than", self.above, value > self.above),
            ("at least", self.at_least, value >= self.at_least),
            ("less than", self.below, value < self.below),
            ("at most", self.at_most, value <= self.at_most),
        )
        unit = self.unit and f" {self.unit}"
        return next((f"must be {words} {bound:,}{unit}" for words, bound, is_met in checks if not is_met), "")


def within(**bounds: Any) -> dict[str, Any]:
    """The metadata of a field with a range; the arguments are those of `Range`."""
    return {_KEY: Range(**bounds)}


def range_of(dataclass_type: type, name: str) -> Range:
    """The range of a field, without bounds if it has none."""
    field = next(field for field in dataclasses.fields(dataclass_type) if field.name == name)
    return field.metadata.get(_KEY, Range())


def check_ranges(instance: Any) -> None:
    """Checks every field that has a range, except those that are None.

    Raises:
        UserError: a value is out of its range; `setting` is the name of the field.
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if _KEY in field.metadata and value is not None and (problem := field.metadata[_KEY].problem(value)):
            raise UserError(f"{field.name} {problem}, not {shortened(value)}", setting=field.name)


def shortened(value: Any) -> str:
    """A value for an error message: only the beginning of a long one."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
