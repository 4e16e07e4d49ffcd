"""Sources of images: each lists every image with its class."""

from pathlib import Path

from pipelines.building.sources.layouts import Layout, recognize
from pipelines.building.sources.source import WHOLE_FILE, Entry, Place, RejectedFile, Source, Stamp, open_regular
from pipelines.building.sources.spool import Scratch

__all__ = [
    "WHOLE_FILE",
    "Entry",
    "Layout",
    "Place",
    "RejectedFile",
    "Scratch",
    "Source",
    "Stamp",
    "open_regular",
    "open_source",
    "recognize",
]


def open_source(root: str | Path, scratch: Scratch | None = None) -> Source:
    """Recognizes the layout of a folder and lists its images. Names that begin with a dot are ignored.

    Args:
        root: the folder.
        scratch: where compressed tars are unpacked.

    Returns:
        The images with their classes.

    Raises:
        UserError: the layout is not known, a class has no training images, or a class folder for validation is
            missing in training.
    """
    return recognize(root).read(scratch)
