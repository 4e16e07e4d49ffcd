"""The machine, the versions and the data set of a run, for the result file."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.shards.shard_set import ShardSet
from pipelines.system.processes import cpu_count

_PACKAGES = (
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "nvidia-dali-cuda120",
    "numpy",
    "pillow",
    "simplejpeg",
    "torch",
    "torchvision",
    "opencv-python-headless",
)


def machine() -> dict[str, Any]:
    """CPU model, usable cores, memory, GPUs, and the malloc settings, which affect the figures."""
    return {
        "cpu": _from_proc("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
        "system": f"{platform.system()} {platform.release()}",
        "malloc": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(("MALLOC_", "LD_PRELOAD"))
        },
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that affect the figures."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, with a plus if tracked files are changed; "unknown" outside git."""
    root = Path(__file__).parents[1]
    try:
        head = _git(root, "rev-parse", "--short", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command(arguments: Sequence[str]) -> str:
    """The command line with folders shortened to their last name: result files are published."""
    return " ".join(
        ["python -m bench", *(Path(a).name if "/" in a and not a.startswith("-") else a for a in arguments)]
    )


def date() -> str:
    """The current time in UTC, to the second, as ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def describe(shards: ShardSet) -> dict[str, Any]:
    """Name, split, number of records and shards, and mean sizes (pixels, kB) of a shard set."""
    heights, widths = shards.sizes.mean(axis=0)
    return {
        "name": shards.paths[0].parent.name,
        "split": shards.split,
        "records": shards.num_records,
        "shards": len(shards.paths),
        "mean_height": round(float(heights)),
        "mean_width": round(float(widths)),
        "mean_kilobytes": round(float(np.mean(shards.lengths)) / 1000, 1),
    }


def _gpus() -> list[str]:
    """The names of the GPUs; empty if TensorFlow is not imported."""
    if (tf := sys.modules.get("tensorflow")) is None:
        return []
    devices = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(device).get("device_name", "GPU") for device in devices]


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def _from_proc(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
