"""Finds the files of a data set by their suffix, and the split of each by the words in its name and its folders."""

import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from pipelines.errors import UserError, reason

# The words of people for the two splits. "test" is the validation split of data sets that have no other one.
_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing"},
}
_COUNTED = re.compile(r"(?P<head>.*?)(?P<number>\d+)(?P<count>-of-\d+)(?P<tail>\D*)")
_NUMBERED = re.compile(r"(?P<head>(?:.*[-_.])?)(?P<number>\d+)(?P<count>)(?P<tail>\.\D*)")
_MOST_FOLDERS = 16  # that are looked into: a class has no folders
_MOST_NAMES = 50_000  # of a folder: a class of images may have more


def split_of(path: Path, root: Path) -> str:
    """The split of a file below `root`: "train", "validation" or "test"; "" if its name and folders do not say it."""
    return split_in(path.relative_to(root).parts)


def split_in(names: Sequence[str]) -> str:
    """The split that the last of some names says that says one; "" if none does."""
    for name in reversed(names):
        words = set(re.split(r"[^a-z]+", name.lower()))
        for split, known in _WORDS.items():
            if known & words:
                return split
    return ""


def files_below(root: Path, suffixes: tuple[str, ...], depth: int = 2) -> list[Path]:
    """The files with one of the suffixes in a folder; if it has none, those in its folders, and so on.

    Args:
        root: the folder.
        suffixes: in lower case.
        depth: how many folders may lie between the folder and a file.

    Returns:
        The files, sorted. Names that begin with a dot are ignored.
    """
    folders = [root]
    for _ in range(depth + 1):
        if len(folders) > _MOST_FOLDERS:
            break
        items = [item for folder in folders for item in _visible(folder)]
        if found := [Path(item.path) for item in items if item.name.lower().endswith(suffixes) and item.is_file()]:
            return sorted(found)
        folders = [Path(item.path) for item in items if item.is_dir()]
    return []


def where(paths: Sequence[Path], root: Path) -> str:
    """Where files are, for a description: " in data/"; "" if they are directly in the folder of the data set."""
    folder = paths[0].parent.relative_to(root)
    return f" in {folder}/" if folder.parts else ""


def by_split(files: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """The files of training and of validation.

    If no file is named for training, those without a split are for training. If none is named for validation, those of
    the test split are for validation. All others are left out.

    Args:
        files: of one kind.
        root: the folder of the data set.

    Returns:
        "train" and "validation" -> files.

    Raises:
        UserError: the files of a split are in several folders, or the numbers in their names have a gap.
    """
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(split_of(path, root), []).append(path)
    chosen = {
        "train": found.get("train") or found.get("", []),
        "validation": found.get("validation") or found.get("test", []),
    }
    splits = {split: paths for split, paths in chosen.items() if paths}
    for split, paths in splits.items():
        folders = sorted({path.parent for path in paths})
        if len(folders) > 1:
            names = " and ".join(f"{folder.relative_to(root)}/" for folder in folders[:2])
            what = f"the {split} files are in several folders, {names}"
            raise UserError(what, path=root, remedy="choose one of these folders as the source", setting="source")
        _check_numbers(paths)
    return splits


def _check_numbers(paths: Sequence[Path]) -> None:
    """Refuses files of which one is missing: x-00000-of-00003 and x-00002-of-00003, or x-0000.tar and x-0002.tar."""
    groups: dict[tuple[str, ...], dict[int, Path]] = {}
    for path in paths:
        if match := _COUNTED.fullmatch(path.name) or _NUMBERED.fullmatch(path.name):
            digits = str(len(match["number"]))
            key = (match["head"], match["count"], match["tail"], digits)
            groups.setdefault(key, {})[int(match["number"])] = path
    for (head, count, tail, digits), numbers in groups.items():
        expected = range(int(count[4:])) if count else range(min(numbers), max(numbers))
        if missing := [number for number in expected if number not in numbers]:
            some = next(iter(numbers.values()))
            path = some.with_name(f"{head}{missing[0]:0{digits}d}{count}{tail}")
            what = "the file is missing, but others of its numbers are there"
            raise UserError(what, path=path, remedy="download it, or rename the others if there is none")


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return [item for item in islice(items, _MOST_NAMES) if not item.name.startswith(".")]
    except OSError as error:
        raise UserError(reason(error), path=folder) from None
