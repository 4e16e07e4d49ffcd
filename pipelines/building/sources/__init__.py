"""Where images come from before they are shards: a source lists every image with its class."""

from pathlib import Path

from pipelines.building.sources.layouts import Layout, recognize
from pipelines.building.sources.source import WHOLE_FILE, Entry, Place, Rejected, Source
from pipelines.building.sources.spool import Scratch

__all__ = ["WHOLE_FILE", "Entry", "Layout", "Place", "Rejected", "Scratch", "Source", "open_source", "recognize"]


def open_source(root: str | Path, scratch: Scratch | None = None) -> Source:
    """Recognizes the layout of a folder and lists its images. Names that begin with a dot are not looked at.

    Compressed tars are unpacked to `scratch`. Raises `UserError` if the folder has no layout that is known, a class
    without training images, or a class folder for validation that training does not know.
    """
    return recognize(root).read(scratch)
