"""The result of a check, and the checks of installed packages. Imports neither TensorFlow nor DALI."""

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

STATES = ("fine", "note", "wrong")


@dataclass(frozen=True)
class Finding:
    """The result of a check: one line of the doctor's output.

    Attributes:
        name: name of the check.
        state: "fine"; "note" if it works, but not as well as it could; or "wrong".
        text: what was found.
        remedy: how to fix it, "" if nothing needs fixing.
        figures: the numbers in `text`.
    """

    name: str
    state: str
    text: str
    remedy: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"{self.state!r} is not one of {STATES}")


def leftovers(dataset: Path) -> Finding:
    """Looks for files that stopped processes left in a folder of shards, as `check_shards` does."""
    from pipelines.building.leftovers import find_leftovers, size_text
    from pipelines.shards import remedies

    if not (found := find_leftovers(dataset)):
        return Finding("leftovers", "fine", f"no files of stopped processes in {dataset}")
    names = ", ".join(f"{path.name} ({size_text(path)})" for path in found)
    remedy = f"remove them, or run {remedies.build_index(dataset)}"
    return Finding("leftovers", "note", f"stopped processes left files in {dataset}: {names}", remedy)


def installed() -> Iterator[Finding]:
    """Checks Python, and the versions of the packages that kimagenet requires."""
    from pipelines.system import limits

    quota = limits.limits().cores
    cores = f"{limits.core_count()} of {os.cpu_count()} cores"
    cores += f" (limited to {quota:g} by a control group)" if quota else ""
    memory = f"{limits.memory_bytes() / (1 << 30):.1f} GB of memory"
    machine = f"{platform.system()} {platform.machine()}, {cores}, {memory}"
    yield Finding("python", "fine", f"{platform.python_version()} on {machine}")
    try:
        yield packages(metadata.requires("kimagenet") or [])
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages",
            "note",
            "kimagenet is not installed, so the versions of its packages are not checked",
            "`pip install .`",
        )


def packages(requires: list[str]) -> Finding:
    """Checks the versions of required packages, and of those of the extras dali and gpu that are installed.

    Args:
        requires: requirements as in the package's metadata.
    """
    seen: dict[str, str] = {}
    wrong: list[str] = []
    remedies: list[str] = []
    for requirement in map(Requirement, requires):
        extra = next((name for name in ("dali", "gpu") if _asks_for(requirement, name)), "")
        if requirement.marker and not (extra or requirement.marker.evaluate({"extra": ""})):
            continue
        version = _version(requirement.name)
        if version is None and extra:
            continue  # another check reports that DALI is missing
        seen[requirement.name] = version or "missing"
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version or 'missing'}, not {requirement.specifier}")
            remedies.append(f"'{requirement.name}{requirement.specifier}'")
    if wrong:
        return Finding("packages", "wrong", "; ".join(wrong), f"`pip install {' '.join(dict.fromkeys(remedies))}`")
    told = ("tensorflow", "keras", "numpy", "nvidia-dali-cuda120", "nvidia-dali-tf-plugin-cuda120")
    return Finding("packages", "fine", ", ".join(f"{name} {seen[name]}" for name in told if name in seen))


def _asks_for(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return bool(marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
