"""One split in one layout: what a function that recognizes a layout returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.building.sources.source import Listing
from pipelines.building.sources.spool import Scratch, plain_tars


@dataclass(frozen=True)
class Part:
    """One split in one layout.

    Attributes:
        text: a description.
        paths: the files and folders that are used.
        read: lists the files; gets what `unpack` made of `packed`, and the classes of train if known.
        packed: files that cannot be read at any offset, such as compressed tars.
        unpack: gives for each of them a file that can, in a folder for temporary files.
    """

    text: str
    paths: tuple[Path, ...]
    read: Callable[[Sequence[Path], Sequence[str] | None], Listing]
    packed: tuple[Path, ...] = ()
    unpack: Callable[[Sequence[Path], Scratch | None], list[Path]] = plain_tars
