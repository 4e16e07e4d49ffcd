"""A measurement, and the JSON file that keeps the measurements of a run."""

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
    """One quantity, measured in several rounds.

    Attributes:
        question: the file in bench/ that measured it.
        name: what was measured; unique within question, unit and settings.
        unit: the unit of the values.
        rounds: the value of each round; at least one.
        settings: what it was measured with, in addition to the settings of the whole run.
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
        """The median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """The minimum and the maximum of the rounds."""
        return min(self.rounds), max(self.rounds)


@dataclass(frozen=True)
class Result:
    """One run of `python -m bench`.

    Attributes:
        command: the command line, with folders by their last name.
        date: UTC, ISO 8601.
        commit: the checkout's commit; "+" behind it says that files were changed.
        machine: CPU, cores, memory, GPUs, system.
        versions: of Python and the packages, by name.
        dataset: name, split, number of records and shards, mean sizes; empty if there is none.
        measurements: what was measured.
    """

    command: str
    date: str
    commit: str
    machine: dict[str, Any]
    versions: dict[str, str]
    dataset: dict[str, Any]
    measurements: tuple[Measurement, ...]

    def to_json(self) -> str:
        """The text of a result file, with the median and the spread of each measurement for other programs."""
        content = {"version": RESULT_VERSION, **asdict(self)}
        for entry, measurement in zip(content["measurements"], self.measurements, strict=True):
            entry |= {"median": measurement.median, "spread": list(measurement.spread)}
        return json.dumps(content, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Writes a result file completely or not at all."""
        write_atomic(path, self.to_json().encode("utf-8"))

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Reads a result file.

        Raises:
            UserError: it cannot be read, or is not a result file of this version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("version") != RESULT_VERSION:
                raise UserError("written by another version of bench", path=path, remedy="measure again")
            entries = content.pop("measurements")
            for entry in entries:
                del entry["median"], entry["spread"]
            return cls(measurements=tuple(Measurement(**entry) for entry in entries), **content)
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", path=path) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError("not a result of `python -m bench`", path=path) from None


ALL = 0.999  # of the pages: a few may have been dropped


def records_from(before: float | None, after: float | None) -> str:
    """Where the records of a measurement were read from, in a word or two for tables.

    Args:
        before: the share of the shards' pages that were in memory at the start; None: unknown.
        after: the same at the end.
    """
    if before is None or after is None:
        return "unknown: the shards belong to another user"
    if min(before, after) >= ALL:
        return "memory"
    return "storage, in part" if before > 1 - ALL else "storage"


def select(
    measurements: Sequence[Measurement], question: str, unit: str | None = None, **settings: Any
) -> list[Measurement]:
    """Picks measurements.

    Args:
        measurements: to pick from.
        question: the question that they belong to.
        unit: their unit; None: any.
        **settings: values that their settings have.
    """
    return [
        m
        for m in measurements
        if m.question == question
        and unit in (None, m.unit)
        and all(m.settings.get(name) == value for name, value in settings.items())
    ]
