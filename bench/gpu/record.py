"""The file of `bench gpu`: one JSON document that is replaced as a whole after each case."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.gpu.case import Outcome
from pipelines.errors import UserError
from pipelines.system.files import write_atomic

VERSION = 1
# What is not repeated when the command is given again. A case that was cut short is.
_FINAL = ("done", "skipped", "failed", "crashed", "hung")


class Record:
    """The outcomes so far, in memory and in the file.

    Args:
        path: the file; if it exists, its outcomes are kept.
        about: what must be equal for outcomes to be comparable: the device and the data set.
        stamp: where and when, for a new file.

    Raises:
        UserError: the file is not one of this command's, or is about something else.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], stamp: Mapping[str, Any]) -> None:
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        self._head = {"version": VERSION, "about": dict(about), **stamp}
        if path.exists():
            self._load(about)

    def _load(self, about: Mapping[str, Any]) -> None:
        remedy = "choose another file"
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            found, entries = content["about"], content.pop("results")
            self.outcomes = {entry["key"]: Outcome(**entry) for entry in entries}
        except (ValueError, TypeError, KeyError) as error:
            what = "not a result of `python -m bench gpu`"
            raise UserError(what, path=self.path, remedy=remedy, setting="output") from error
        if content["version"] != VERSION or found != dict(about):
            what = f"holds results about {found}, not about {dict(about)}"
            raise UserError(what, path=self.path, remedy=remedy, setting="output")
        self._head = content

    def is_final(self, key: str) -> bool:
        """Whether a case has a result that stays."""
        return key in self.outcomes and self.outcomes[key].state in _FINAL

    def add(self, outcome: Outcome) -> None:
        """Keeps an outcome, in the file as well."""
        self.outcomes[outcome.key] = outcome
        content = self._head | {"results": [asdict(each) for each in self.outcomes.values()]}
        write_atomic(self.path, (json.dumps(content, indent=1) + "\n").encode())


def table(outcomes: Mapping[str, Outcome], keys: list[str]) -> str:
    """A line for each case, in the order of steps.

    Args:
        outcomes: by key.
        keys: of all cases; those without an outcome are shown as not run.
    """
    lines, step = [], ""
    width = max((len(key) - 2 for key in keys), default=0)
    for key in sorted(keys, key=lambda key: key[0]):  # stable: within a step as they were run
        if key[0] != step:
            step = key[0]
            lines.append(f"\n{step}  {STEPS[step]}")
        found = outcomes.get(key)
        state, text = (found.state, _text(found)) if found else ("not run", "")
        lines.append(f"   {key[2:]:{width}} {state:8} {text}".rstrip())
    return "\n".join(lines)


def _text(outcome: Outcome) -> str:
    figures = ", ".join(f"{name} {_short(value)}" for name, value in outcome.figures.items() if _is_shown(value))
    if outcome.state == "done":
        return figures
    return "; ".join(part for part in (*outcome.said[:1], *outcome.said[-1:][: len(outcome.said) - 1], figures) if part)


def _is_shown(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and 0 < len(value) <= 300)


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


STEPS = {
    "a": "machine, driver, versions",
    "b": "DALI alone: decoder and graph",
    "c": "pixels: the GPU's graph against the CPU's",
    "d": "loaders through TensorFlow",
    "e": "training",
    "f": "epochs, memory, two devices on one GPU",
    "g": "faults: corrupt records, kill and resume",
    "h": "training to a known accuracy",
    "z": "cases that end badly, to rehearse the report",
}
