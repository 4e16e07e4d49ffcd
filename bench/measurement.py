"""What a measurement is, and the file it is kept in."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.system.files import write_atomic

RESULT_VERSION = 1


@dataclass(frozen=True)
class Measurement:
    """One number, measured in several rounds.

    Attributes:
        question: the file in bench/ that asked. name: what was measured, unique within question, unit and settings.
        rounds: the value of each round, in `unit`. settings: what it was measured with, besides the run's.
    """

    question: str
    name: str
    unit: str
    rounds: tuple[float, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rounds:
            raise ValueError(f"{self.question}/{self.name}: a measurement has at least one round")
        object.__setattr__(self, "rounds", tuple(float(value) for value in self.rounds))

    @property
    def median(self) -> float:
        """The middle round."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest round."""
        return min(self.rounds), max(self.rounds)

    def line(self) -> str:
        """For the terminal: name, median, spread."""
        low, high = self.spread
        figure = f"{_short(self.median)} {self.unit}"
        return f"{self.name:44} {figure:>36}" + (f"   {_short(low)} … {_short(high)}" if len(self.rounds) > 1 else "")


@dataclass(frozen=True)
class Result:
    """One run of `python -m bench`: what was measured, where, and with what."""

    command: str
    date: str
    commit: str
    machine: dict[str, Any]
    versions: dict[str, str]
    dataset: dict[str, Any]
    measurements: tuple[Measurement, ...]

    def to_json(self) -> str:
        """The text of a result file; median and spread are written out for other programs."""
        content = {"version": RESULT_VERSION, **asdict(self)}
        for entry, measurement in zip(content["measurements"], self.measurements, strict=True):
            entry |= {"median": measurement.median, "spread": list(measurement.spread)}
        return json.dumps(content, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Writes a result file, whole or not at all."""
        write_atomic(path, self.to_json().encode("utf-8"))

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Reads a result file; raises `UserError` naming it."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("version") != RESULT_VERSION:
                raise UserError(f"{path}: not written by this version of bench; measure again")
            entries = content.pop("measurements")
            for entry in entries:
                del entry["median"], entry["spread"]
            return cls(measurements=tuple(Measurement(**entry) for entry in entries), **content)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{path}: not a result of `python -m bench --output`") from None


def select(
    measurements: Sequence[Measurement], question: str, unit: str | None = None, **settings: Any
) -> list[Measurement]:
    """Those of a question, a unit, and settings that include the given ones."""
    return [
        m
        for m in measurements
        if m.question == question
        and unit in (None, m.unit)
        and all(m.settings.get(name) == value for name, value in settings.items())
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
