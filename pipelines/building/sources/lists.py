"""Lists of images: a CSV file or JSON lines with a path, a label and optionally a split for each image.

Paths are relative to the folder of the list. A label is the name of a class, or a number; classes that are all numbers
are ordered as numbers.
"""

import csv
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from pipelines.building.sources.part import Part
from pipelines.building.sources.source import Found, Listing, Place, RejectedFile
from pipelines.building.sources.splits import by_split, files_below, split_in, split_of
from pipelines.errors import UserError, reason
from pipelines.shards.contents import IMAGE_SUFFIXES, LIST_NAMES, LIST_SUFFIXES
from pipelines.system.ahead import read_ahead
from pipelines.system.reading import regular

_PATHS = ("path", "file_name", "filename", "file", "filepath", "image_path", "image", "img")
_LABELS = ("label", "class", "class_name", "category", "wnid", "target", "labels")
_SPLITS = ("split", "set", "subset")
_DELIMITERS = ",;\t"
_PIECE, _READERS = 4096, 16  # rows at a time; files that are looked for at once


class _Row(NamedTuple):
    line: int
    path: str
    label: str
    split: str


def image_lists(root: Path) -> dict[str, Part]:
    """train.csv and validation.csv (or .jsonl), or one list that may have a column `split`, in the folder."""
    files = [
        path for path in files_below(root, LIST_SUFFIXES, depth=1) if path.name.lower().split(".")[0] in LIST_NAMES
    ]
    whole = [path for path in files if not split_of(path, root)]
    if len(whole) == 1 and len(files) == 1:
        return image_list(whole[0])
    parts = {}
    for split, paths in by_split(files, root).items():
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise UserError(f"several lists of {split} images ({names})", path=root, remedy="keep one of them")
        text = f"the list {paths[0].relative_to(root)}"
        parts[split] = Part(text, (paths[0].parent,), partial(_read, paths[0], None))
    return parts


def image_list(path: Path) -> dict[str, Part]:
    """One list of images; its column `split` says what is for validation.

    Raises:
        UserError: it is no list, or a column is missing.
    """
    if path.suffix.lower() not in LIST_SUFFIXES:
        remedy = (
            f"choose the folder that has it, {path.absolute().parent}, or a list of images ({', '.join(LIST_SUFFIXES)})"
        )
        raise UserError("a file, not a folder of a data set", path=path, remedy=remedy, setting="source")
    counts = Counter(_known_split(row.split) for row in _rows(path))
    if counts.keys() == {""}:
        return {"train": Part(f"the list {path.name}", (path.parent,), partial(_read, path, None))}
    wanted = {"train": "train", "validation": "validation" if counts["validation"] else "test"}
    chosen = {split: name for split, name in wanted.items() if counts[name]}
    if "train" not in chosen:
        found = ", ".join(sorted(counts)) or "no rows"
        raise UserError(f"no training images in the list (its splits: {found})", path=path, remedy="name some `train`")
    rest = [f"{counts[name]:,} of {name or 'no split'}" for name in sorted(counts) if name not in chosen.values()]
    unused = f" (not used: {', '.join(rest)})" if rest else ""
    last = list(chosen)[-1]
    return {
        split: Part(
            f"the list {path.name}, {name}{unused * (split == last)}", (path.parent,), partial(_read, path, name)
        )
        for split, name in chosen.items()
    }


def _known_split(text: str) -> str:
    """The split that a text in the column `split` names; the text itself if it is none."""
    return split_in(Path(text).parts) or text


def _read(path: Path, only: str | None, _: Sequence[Path], __: Sequence[str] | None) -> Listing:
    """Lists a split; `only` is its name in the column of splits, None takes all rows."""
    return Listing(_files(path, only), order="number", names_repeat=True)


def _files(path: Path, only: str | None) -> Iterator[Found | RejectedFile]:
    rows = (row for row in _rows(path) if only is None or _known_split(row.split) == only)
    seen: dict[str, str] = {}
    places: dict[str, Place] = {}
    folder = path.parent
    while piece := list(islice(rows, _PIECE)):
        problems = read_ahead(lambda row: _problem(folder / row.path), piece, _READERS)
        for row, problem in zip(piece, problems, strict=True):
            where = os.path.dirname(row.path)
            place = places.setdefault(where, Place(str(folder / where), where))
            found = Found(row.label, place, os.path.basename(row.path))
            if not row.path or not row.label:
                missing = "path" if not row.path else "label"
                yield RejectedFile("", f"{path.name}, line {row.line}", f"the {missing} is missing")
            elif row.path in seen:
                other = "" if seen[row.path] == row.label else f", with the class {seen[row.path]}"
                yield found.rejected(f"listed before{other} (line {row.line})")
            else:
                seen[row.path] = row.label
                yield found.rejected(problem) if problem else found


def _problem(path: Path) -> str:
    """Why a path of the list is no file; "" if it is one."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return reason(error) if isinstance(error, OSError) else str(error)
    if stat.S_ISREG(mode):
        return ""
    return "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file"


def _rows(path: Path) -> Iterator[_Row]:
    """The rows of a list. Raises `UserError` if it cannot be read or a column is missing."""
    try:
        with open(path, encoding="utf-8-sig", newline="", opener=regular) as stream:
            yield from (_json_rows if path.suffix.lower() == ".jsonl" else _csv_rows)(path, stream)
    except OSError as error:
        raise UserError(reason(error), path=path) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"not a list that can be read ({error})", path=path, remedy="write it as UTF-8") from None


def _csv_rows(path: Path, lines: Iterator[str]) -> Iterator[_Row]:
    first = next(lines, "")
    delimiter = max(_DELIMITERS, key=first.count)
    rows = csv.reader(chain([first], lines), delimiter=delimiter)
    header = next(rows, [])
    names = [name.strip().lower() for name in header]
    if len(header) == 2 and Path(header[0]).suffix.lower() in IMAGE_SUFFIXES:  # no header
        names = ["path", "label"]
        yield _Row(1, header[0].strip(), header[1].strip(), "")
    take = _taker(path, dict.fromkeys(names))
    for row in rows:
        if row:
            yield take(rows.line_num, dict(zip(names, row, strict=False)).get)


def _json_rows(path: Path, lines: Iterator[str]) -> Iterator[_Row]:
    take: Callable[[int, Callable[[str], object]], _Row] | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            values = {key.lower(): value for key, value in found.items()}
        except (ValueError, AttributeError):
            what = f"line {number} is no JSON object"
            raise UserError(what, path=path, remedy='write lines like {"path": "a.jpg", "label": "cat"}') from None
        take = take or _taker(path, values)
        yield take(number, values.get)


def _taker(path: Path, columns: dict) -> Callable[[int, Callable[[str], object]], _Row]:
    """How to make a row of its cells. Raises `UserError` if no column has paths or labels."""
    chosen = []
    for kind, names in (("paths", _PATHS), ("labels", _LABELS), ("", _SPLITS)):
        name = next((name for name in names if name in columns), None)
        if name is None and kind:
            what = f"no column of {kind}; it has the columns {', '.join(columns) or '(none)'}"
            raise UserError(what, path=path, remedy=f"name the column of {kind} `{names[0]}`")
        chosen.append(name)

    def take(number: int, cell: Callable[[str], object]) -> _Row:
        texts = ["" if name is None or (value := cell(name)) is None else str(value).strip() for name in chosen]
        return _Row(number, *texts)

    return take
