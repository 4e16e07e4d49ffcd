"""Image files in class folders, matched by name with the classes of a model."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kimagenet.inference.class_match import plain
from pipelines.building.sources.folders import SPLIT_FOLDERS
from pipelines.errors import UserError
from pipelines.shards.dataset import DATASET_FILE

if TYPE_CHECKING:
    from pipelines.images import ImageFile


def find(directory: Path, split: str) -> Path | None:
    """The folder of the class folders.

    Args:
        directory: a data set, of shards or of files.
        split: a folder of this name, if there is one, has the class folders; else `directory`.

    Returns:
        The folder; None if `directory` has shards, or no class folders.
    """
    if (directory / DATASET_FILE).exists() or not directory.is_dir():
        return None
    folders = [directory / name for name in SPLIT_FOLDERS.get(split, (split,))]
    root = next((folder for folder in folders if folder.is_dir()), directory)
    return root if _folders(root) else None


def names(root: Path) -> tuple[str, ...]:
    """The names of the class folders, sorted."""
    return tuple(folder.name for folder in _folders(root))


def list_images(root: Path, classes: Sequence[str], wnids: Sequence[str | None] = ()) -> "list[ImageFile]":
    """All files of all class folders, by class and name. Names that start with a dot are ignored.

    Args:
        root: the folder of the class folders, which have the name or the wnid of a class.
        classes: the names of the model's classes, in label order.
        wnids: their WordNet ids, in label order.

    Raises:
        UserError: a folder is not a class of the model, or there is no file.
    """
    from pipelines.images import ImageFile  # which imports TensorFlow

    labels = _labels(classes, wnids)
    files = []
    for folder in _folders(root):
        if (label := labels.get(plain(folder.name))) is None:
            raise UserError("the model has no class of this name", path=folder, remedy="rename or remove the folder")
        names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        files += [ImageFile(path, label) for path in names]
    if not files:
        raise UserError("no images in its class folders", path=root)
    return files


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _labels(classes: Sequence[str], wnids: Sequence[str | None]) -> dict[str, int]:
    """The number of a class by its wnid, and by its name if only one class has it."""
    counts = Counter(map(plain, classes))
    names = {name: label for label, name in enumerate(map(plain, classes)) if counts[name] == 1}
    return names | {wnid: label for label, wnid in reversed([*enumerate(wnids)]) if wnid}
