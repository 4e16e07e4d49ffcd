"""Files that look like shards, but that dataset.json does not list: no loader reads them."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from pipelines.building.writers import read_format
from pipelines.errors import UserError, one_line
from pipelines.shards import remedies
from pipelines.shards.finding import find_shards
from pipelines.shards.shard_names import parse

_LIKE_A_SHARD = re.compile(r"[^.].*\d-of-\d+(?:\.(?:tfrecords?|tfrec))?")
_USUAL = "train-00000-of-00001"
_SHOWN = 3


class Unlisted(NamedTuple):
    """Files that belong together.

    Attributes:
        file: the first.
        what: what is wrong, for messages.
        remedy: what to do.
    """

    file: str
    what: str
    remedy: str


def find_unlisted(directory: Path, listed: Collection[str]) -> list[Unlisted]:
    """Finds the files of a folder that look like shards and are not listed, split by split.

    A split of another writer without labels is left out: it cannot be listed.

    Args:
        directory: the folder.
        listed: the shards of dataset.json.
    """
    groups: dict[str, list[str]] = {}
    splits = set(map(_split, listed))
    skipped = _without_labels(directory)
    for name in _like_shards(directory, listed):
        known = parse(name)
        if not (known and known.split in skipped):
            groups.setdefault(known.pattern if known else "", []).append(name)
    found = []
    for pattern, names in groups.items():
        if pattern:
            it = "it" if len(names) == 1 else "them"
            others = " or the listed shards of this split, and" if _split(names[0]) in splits else ", or"
            remedy = f"remove {it}{others} run {remedies.build_index(directory)}"
            found.append(Unlisted(names[0], f"dataset.json does not list {_count(names)}", remedy))
        else:
            found.append(Unlisted(names[0], *_misnamed(names)))
    return found


def passed_over(directory: Path) -> str:
    """What `build_index` does not take, because its name is not that of a shard; "" if there is nothing."""
    names = [name for name in _like_shards(directory, ()) if not parse(name)]
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"not used: {one_line(', '.join(names[:_SHOWN]))}{more}; {'; '.join(_misnamed(names))}"


def _like_shards(directory: Path, listed: Collection[str]) -> list[str]:
    there = (path for path in directory.iterdir() if path.is_file())
    return sorted(path.name for path in there if _LIKE_A_SHARD.fullmatch(path.name) and path.name not in listed)


def _misnamed(names: list[str]) -> tuple[str, str]:
    """What is wrong with names, and what to do."""
    it = "it" if len(names) == 1 else "them"
    remedy = f"rename {it} in the form {_USUAL} (split, number, count), and run build_index again"
    return f"{_count(names)} {'has' if len(names) == 1 else 'have'} no name of a shard, so no loader reads it", remedy


def _split(name: str) -> str:
    """The split in a shard's name; "" if the name is of another form."""
    known = parse(name)
    return known.split if known else ""


def _count(names: list[str]) -> str:
    return "this file" if len(names) == 1 else f"{len(names):,} such files"


def _without_labels(directory: Path) -> Collection[str]:
    try:
        return read_format(directory, find_shards(directory)).unlabelled
    except UserError:  # such as shards of several data sets, which are named
        return ()
