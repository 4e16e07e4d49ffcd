"""The machine as this process may use it: limits of control groups, as Docker, Kubernetes and SLURM set them."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
# Version 1 has a folder for each controller, whose names differ between systems.
_CPU_FOLDERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")


@dataclass(frozen=True)
class Limits:
    """What control groups allow.

    Attributes:
        cores: processor time per time, 0.5 for half a core; None: no limit.
        memory: bytes; None: no limit.
    """

    cores: float | None
    memory: int | None


def limits(root: Path = _ROOT, own: Path = _OWN) -> Limits:
    """Reads the limits of this process' control groups and of those above them, of version 1 and 2.

    Args:
        root: where control groups are mounted.
        own: the file with the groups of this process.
    """
    groups = _groups(own)
    unified = [folder for base in (root, root / "unified") for folder in _upwards(base, groups.get("", "/"))]
    cores = [_quota(_words(folder / "cpu.max")) for folder in unified]
    memory = [_number(_words(folder / "memory.max")) for folder in unified]
    for base in _CPU_FOLDERS:
        for folder in _upwards(root / base, groups.get("cpu", "/")):
            cores.append(_quota(_words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")))
    for folder in _upwards(root / "memory", groups.get("memory", "/")):
        memory.append(_number(_words(folder / "memory.limit_in_bytes")))
    return Limits(min(filter(None, cores), default=None), min(filter(None, memory), default=None))


def core_count(root: Path = _ROOT, own: Path = _OWN) -> int:
    """The cores that this process may use by its affinity and its quota, at least 1; takes `limits`' arguments."""
    by_affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = limits(root, own).cores
    return by_affinity if quota is None else max(1, min(by_affinity, math.ceil(quota)))


def memory_bytes(root: Path = _ROOT, own: Path = _OWN) -> int:
    """The memory that this process may use: the machine's or its limit, in bytes; takes `limits`' arguments."""
    of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = limits(root, own).memory
    return of_machine if limit is None else min(of_machine, limit)


def _groups(own: Path) -> dict[str, str]:
    """The group of this process by controller; "" for version 2."""
    found: dict[str, str] = {}
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        found |= dict.fromkeys(controllers.split(","), path)
    return found


def _upwards(base: Path, group: str) -> Iterator[Path]:
    """The folders of a group and of all groups above it. In a container only the last may be there."""
    path = Path(group.lstrip("/"))
    for part in (path, *path.parents):
        if ".." not in part.parts:  # a group outside this container's
            yield base / part


def _quota(words: list[str]) -> float | None:
    """Cores from a quota and a period in microseconds. No limit is "max" or -1."""
    if len(words) != 2:
        return None
    quota, period = _number(words[:1]), _number(words[1:])
    return quota / period if quota and period else None


def _number(words: list[str]) -> int | None:
    """A positive number, or None."""
    return int(words[0]) if len(words) == 1 and words[0].isdecimal() and int(words[0]) else None


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
