"""The `--json` outputs: whole or absent, and refused before hours of work if they could not be written."""

import json
import math
import os
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.system.files import write_atomic


def check_writable(path: Path) -> None:
    """Raises `UserError` unless a file can be put there."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: cannot be written, there is no folder {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: cannot be written")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object; raises `UserError` if that fails."""
    try:
        write_atomic(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def finite(value: float | None) -> float | None:
    """The value, or None where it is NaN or infinite: JSON knows neither."""
    return value if value is not None and math.isfinite(value) else None
