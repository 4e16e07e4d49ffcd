"""The `--json` outputs: complete or absent. A path that cannot be written is refused before hours of work."""

import json
import math
import os
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.system.files import write_atomic
from pipelines.system.streams import is_stream


def check_writable(path: Path) -> None:
    """Checks that a file can be written to a path.

    Raises:
        UserError: it cannot.
    """
    if is_stream(path):
        if path.exists() and not os.access(path, os.W_OK):
            raise UserError("cannot be written, permission denied", path=path)
        return
    parent = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
    if not parent.is_dir():
        raise UserError(f"cannot be written, there is no folder {parent}", path=path)
    if path.is_dir():
        raise UserError("cannot be written, it is a folder", path=path)
    if not os.access(parent, os.W_OK):
        raise UserError(f"cannot be written, the folder {parent} is read-only", path=path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        write_atomic(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", path=path) from None


def finite(value: float | None) -> float | None:
    """The value, or None if it is NaN or infinite, which JSON does not know."""
    return value if value is not None and math.isfinite(value) else None
