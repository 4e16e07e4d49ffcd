"""What stopped processes leave in a folder of shards: the state of an unfinished build, and temporary files."""

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from pipelines.errors import UserError
from pipelines.shards.dataset import DATASET_FILE
from pipelines.system.files import bytes_text, remove_leftovers

STATE_FOLDER = ".build"  # beside the shards: the plan of an unfinished build and a note for each finished shard
PLAN_FILE = "plan.json"
_TEMPORARY = ".*.[0-9]*.tmp"  # names that `pipelines.system.files` gives

_log = logging.getLogger(__name__)


def check_finished(directory: Path) -> None:
    """Checks that no build of a folder is unfinished.

    Raises:
        UserError: one is; its shards may be incomplete.
    """
    if (directory / STATE_FOLDER / PLAN_FILE).exists() and not (directory / DATASET_FILE).exists():
        remedy = "repeat the command of that build, or remove the folder"
        raise UserError("the folder has an unfinished build", path=directory, remedy=remedy)


def find_leftovers(directory: Path) -> list[Path]:
    """The state of a build that is complete, and temporary files. No loader needs them."""
    state = directory / STATE_FOLDER
    found = [state] if state.exists() and (directory / DATASET_FILE).exists() else []
    return found + sorted(directory.glob(_TEMPORARY))


def clean_up(directory: Path) -> None:
    """Removes what `find_leftovers` finds. No other process may be writing there.

    The copies of a build's sources go first: they take long, and the same command can make them again. The plan and
    the notes disappear in one step. So a build that is killed here is either continued or over, never half known.
    """
    remove_leftovers(directory)
    state = directory / STATE_FOLDER
    if state.exists() and (directory / DATASET_FILE).exists():
        for path in state.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):  # named below
            state.rename(directory / f"{STATE_FOLDER}.{os.getpid()}.tmp")
    for path in find_leftovers(directory):
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            _log.warning("%s: cannot be removed; remove it yourself, the data set does not need it", path)


def size_text(path: Path) -> str:
    """The size of a file or of all files in a folder, for people."""
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    return bytes_text(sum(item.stat().st_size for item in files))
