"""Limits of control groups, in folders like those of the kernel."""

import os
import re
from pathlib import Path

import pytest

from kimagenet.diagnosis.findings import installed
from pipelines.system import limits as module
from pipelines.system.limits import core_count, limits, memory_bytes
from pipelines.system.processes import cpu_count

UNLIMITED_V1 = 9223372036854771712
GB = 1 << 30


def machine(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (folder / "own").write_text(own + "\n")
    return folder / "cgroup", folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "cores", "memory"),
    [
        ("", {}, None, None),
        ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, None, None),
        # version 2: in a container, on a host, the smallest of the groups above (Kubernetes)
        ("0::/", {"cpu.max": "50000 100000", "memory.max": str(2 * GB)}, 0.5, 2 * GB),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000", "a/b/memory.max": str(GB)}, 1.5, GB),
        ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2.0, None),
        ("0::/../x", {"cpu.max": "200000 100000"}, 2.0, None),
        # version 1: in a container whose own path is not mounted, on a host, without a limit
        (
            "4:cpu,cpuacct:/docker/1\n3:memory:/docker/1",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": str(GB),
            },
            2.5,
            GB,
        ),
        ("1:cpu:/j", {"cpu/j/cpu.cfs_quota_us": "50000", "cpu/j/cpu.cfs_period_us": "50000"}, 1.0, None),
        ("1:cpu:/j", {"cpu/j/cpu.cfs_quota_us": "-1", "cpu/j/cpu.cfs_period_us": "100000"}, None, None),
        # both, as systemd's hybrid layout; and what cannot be read
        ("1:cpu:/\n0::/u", {"cpu/cpu.cfs_quota_us": "1", "unified/u/cpu.max": "300000 100000"}, 3.0, None),
        ("0::/", {"cpu.max": "no numbers at all", "memory.max": "-5"}, None, None),
        ("0::/", {"cpu.max": "0 100000"}, None, None),
    ],
)
def test_limits_are_read(
    own: str, files: dict[str, str], cores: float | None, memory: int | None, tmp_path: Path
) -> None:
    found = limits(*machine(tmp_path, own, files))
    assert (found.cores, found.memory) == (cores, memory)


@pytest.mark.parametrize(("quota", "expected"), [(1, 1), (50_000, 1), (150_000, 2), (10**9, 8)])
def test_cores_follow_the_quota_and_the_affinity(
    quota: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert core_count(*machine(tmp_path, "0::/", {"cpu.max": f"{quota} 100000"})) == expected


def test_memory_is_at_most_the_machines(tmp_path: Path) -> None:
    places = machine(tmp_path, "3:memory:/", {"memory/memory.limit_in_bytes": str(UNLIMITED_V1)})
    of_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_bytes(*places) == of_machine
    (places[0] / "memory" / "memory.limit_in_bytes").write_text("1000000")
    assert memory_bytes(*places) == 1_000_000


def test_workers_and_the_doctor_follow_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(module, "limits", lambda *_: module.Limits(1.5, 3 * GB))
    assert cpu_count() == 2
    first = next(installed())
    assert re.search(r" 2 of \d+ cores \(limited to 1\.5 by a control group\), 3\.0 GB of memory", first.text)
