"""Images in WebDataset tars: files that follow each other and have one name up to its first dot are a sample.

A sample has an image (`key.jpg`), and its label in `key.cls`, or in `key.json` as `label`. The label is a number or the
name of a class. Names of numbers are lines of classnames.txt or classes.txt beside the tars, if there is such a file.
The tars are read where they are; nothing is unpacked, except from compressed ones.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

from pipelines.building.sources.numbers import class_of, names_of_numbers, parsed
from pipelines.building.sources.part import Part
from pipelines.building.sources.source import Found, Listing, Place, RejectedFile
from pipelines.building.sources.splits import by_split, files_below, where
from pipelines.building.sources.tars import members, problem, stamp_of
from pipelines.errors import UserError, reason
from pipelines.shards.contents import IMAGE_SUFFIXES
from pipelines.system.reading import read_file

# Tars of ImageNet, which have other layouts.
_OTHERS = re.compile(r"ILSVRC2012_.*|train_images_\d+\..*|val_images\..*|n\d{8}\.tar")
_NAMES_FILES = ("classnames.txt", "classes.txt")
_LABEL_KEYS = ("label", "cls")
_LOOKED_AT = 64  # samples that show whether the labels are ImageNet's
_MOST_TEXT = 1 << 20  # bytes of a .cls or .json file
_NO_LABEL_FILE = "it has no .cls file, and no .json file with a label"


def webdataset(root: Path) -> dict[str, Part]:
    """imagenet1k-train-0000.tar and so on, in the folder or below; the split is a word in the name or the folder."""
    tars = [path for path in files_below(root, (".tar", ".tar.gz")) if not _OTHERS.fullmatch(path.name)]
    parts = {}
    for split, paths in by_split(tars, root).items():
        shown = [str(path.relative_to(root)) for path in paths]
        names = next((path for name in _NAMES_FILES if (path := paths[0].with_name(name)).is_file()), None)
        named = f" (names of classes: {names.name})" if names else ""
        count = f"{len(paths)} {split} {'tar' if len(paths) == 1 else 'tars'}"
        text = f"{count} of WebDataset{where(paths, root)}{named}"
        used = (*paths, names) if names else tuple(paths)
        parts[split] = Part(text, used, partial(_read, shown, names), tuple(paths))
    return parts


def _read(shown: Sequence[str], names_file: Path | None, tars: Sequence[Path], _: Sequence[str] | None) -> Listing:
    looked_at = [sample for sample in islice(_samples(tars[0], shown[0]), _LOOKED_AT) if isinstance(sample, _Sample)]
    labels = [(label, sample.name) for sample in looked_at if (label := sample.label) is not None]
    numbered = any(isinstance(label, int) for label, _ in labels)
    names = names_of_numbers(labels, _names(names_file)) if numbered else None
    files = (found for tar, name in zip(tars, shown, strict=True) for found in _files(tar, name, names))
    return Listing(files, names, "given" if names else "number" if numbered else "name", names_repeat=True)


def _names(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        return read_file(path).decode().splitlines() or None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", path=path, remedy="copy it again, or remove it") from None


def _files(tar: Path, shown: str, names: Sequence[str] | None) -> Iterator[Found | RejectedFile]:
    place = Place(str(tar), shown, stamp_of(tar))
    for sample in _samples(tar, shown):
        if isinstance(sample, RejectedFile):
            yield sample
        elif not sample.images:
            yield RejectedFile("", f"{shown}/{sample.key}", "the sample has no image")
        else:
            class_name, why = class_of(sample.label, names)
            offset, length = next(iter(sample.images.values()))
            found = Found(class_name, place, sample.name, offset, length)
            if len(sample.images) > 1:
                why = f"the sample has {len(sample.images)} images ({', '.join(sample.images)})"
            elif sample.label is None:
                why = _NO_LABEL_FILE
            yield found.rejected(why) if why else found


@dataclass
class _Sample:
    """One sample.

    Attributes:
        key: the name of its files up to the first dot, with the folder in the tar.
        images: suffix -> (first byte, length) of each image.
        texts: suffix -> content of .cls and .json.
    """

    key: str
    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)

    @property
    def label(self) -> int | str | None:
        """Its label; None if it has none."""
        if text := self.texts.get("cls", b"").decode("utf-8", "replace").strip():
            return parsed(text)
        found = self._json
        value = next((found[key] for key in _LABEL_KEYS if isinstance(found.get(key), int | str)), None)
        return parsed(value) if isinstance(value, str) else value

    @property
    def name(self) -> str:
        """The name of the image's file: as the .json file has it, else the key's."""
        found = self._json.get("filename")
        if isinstance(found, str) and found:
            return found.rsplit("/", 1)[-1]
        return f"{self.key.rsplit('/', 1)[-1]}.{next(iter(self.images), '')}"

    @cached_property
    def _json(self) -> dict:
        with suppress(ValueError):
            found = json.loads(self.texts.get("json", b"{}"))
            return found if isinstance(found, dict) else {}
        return {}


def _samples(tar: Path, shown: str) -> Iterator[_Sample | RejectedFile]:
    """The samples of a tar in order, and the members that are not safe to read."""
    sample: _Sample | None = None
    try:
        descriptor = os.open(tar, os.O_RDONLY)
    except OSError as error:
        raise UserError(reason(error), path=tar) from None
    try:
        for member in members(tar, shown, 0, None):
            folder, _, base = member.name.removeprefix("./").rpartition("/")
            if base.startswith((".", "__")) or member.isdir():
                continue
            if why := problem(member):
                yield RejectedFile("", f"{shown}/{member.name}", why)
                continue
            stem, _, suffix = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if sample is None or sample.key != key:
                if sample:
                    yield sample
                sample = _Sample(key)
            if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                sample.images[suffix] = (member.offset_data, member.size)
            elif suffix.lower() in ("cls", "json") and member.size <= _MOST_TEXT:
                sample.texts[suffix.lower()] = os.pread(descriptor, member.size, member.offset_data)
        if sample:
            yield sample
    finally:
        os.close(descriptor)
