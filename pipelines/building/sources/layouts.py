"""The layouts of ImageNet and other data sets: one small function recognizes each.

A layout gives a part for each split that it finds. Training and validation may come from different layouts, for example
train/<class>/ and ILSVRC2012_img_val.tar.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from pipelines.building.sources import imagenet
from pipelines.building.sources.folders import find_split, is_flat, list_classes, list_split, may_be_split, one_folder
from pipelines.building.sources.lists import image_list, image_lists
from pipelines.building.sources.parquet import parquet
from pipelines.building.sources.part import Part
from pipelines.building.sources.records import tf_records
from pipelines.building.sources.source import Found, Listing, RejectedFile, Source, collect
from pipelines.building.sources.spool import Scratch
from pipelines.building.sources.tars import list_tar, stamp_of
from pipelines.building.sources.webdataset import webdataset
from pipelines.errors import UserError
from pipelines.shards.contents import WANTED, look
from pipelines.system.files import user_path

OFFICIAL_TRAIN, OFFICIAL_VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
KAGGLE_FOLDER, KAGGLE_LABELS = Path("Data/CLS-LOC"), "LOC_val_solution.csv"
_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_TRAIN_TAR = re.compile(r"train_images_(\d+)\.tar(?:\.gz)?")


@dataclass(frozen=True)
class Layout:
    """The parts of a data set that were recognized.

    Attributes:
        root: the folder.
        parts: split -> where it is; train is the first.
        unused: files and folders that belong to no part, relative to the root.
    """

    root: Path
    parts: Mapping[str, Part]
    unused: tuple[str, ...]

    @property
    def text(self) -> str:
        """A description, one line."""
        return ", ".join(part.text for part in self.parts.values())

    @property
    def packed(self) -> dict[str, tuple[int, ...]]:
        """Path -> (size, modified) of each file that has to be unpacked; raises `UserError`."""
        return {str(path.absolute()): stamp_of(path) for part in self.parts.values() for path in part.packed}

    @property
    def is_packed(self) -> bool:
        """Whether all its images are in files that have to be unpacked."""
        return all(part.packed and set(part.packed) == set(part.paths) for part in self.parts.values())

    def read(self, scratch: Scratch | None) -> Source:
        """Lists the images; for tars this may take minutes.

        Args:
            scratch: where compressed tars are unpacked.

        Returns:
            The images with their classes.

        Raises:
            UserError: a file is damaged, or classes or images are missing.
        """
        packed = self.packed  # before they are read: a later change is then seen
        plain: dict[Path, Path] = {}
        for unpack in dict.fromkeys(part.unpack for part in self.parts.values()):
            paths = [path for part in self.parts.values() if part.unpack == unpack for path in part.packed]
            plain |= zip(paths, unpack(paths, scratch), strict=True)
        classes: Sequence[str] | None = None
        splits: dict[str, Listing] = {}
        for split, part in self.parts.items():
            splits[split] = part.read([plain[path] for path in part.packed], classes)
            classes = splits[split].classes if split == "train" else classes
        return replace(collect(self.text, self.root, splits), packed=packed)


def official_tars(root: Path) -> dict[str, Part]:
    """ILSVRC2012_img_train.tar (a tar of <wnid>.tar), ILSVRC2012_img_val.tar."""
    parts = {}
    train, validation = root / OFFICIAL_TRAIN, root / OFFICIAL_VALIDATION
    if train.is_file():

        def read(_: Sequence[Path], __: Sequence[str] | None) -> Listing:
            rejected, tars = _class_tars(train)
            return Listing(chain(rejected, _images_of(train, tars)), list(dict.fromkeys(name for name, _ in tars)))

        parts["train"] = Part(f"ImageNet's official tars, {train.name}", (train,), read)
    if validation.is_file():
        labels = _Labels(root)
        parts["validation"] = Part(
            f"{validation.name} {labels.text}",
            (validation, *labels.paths),
            lambda _, __: Listing(_labelled(list_tar(validation, validation.name), labels.read())),
        )
    return parts


def kaggle(root: Path) -> dict[str, Part]:
    """ILSVRC/Data/CLS-LOC/{train/<wnid>,val}, with LOC_val_solution.csv beside ILSVRC. `root` may be ILSVRC."""
    base = next((base for base in (root / "ILSVRC", root) if (base / KAGGLE_FOLDER).is_dir()), None)
    if base is None:
        return {}
    tables = (root / KAGGLE_LABELS, base / KAGGLE_LABELS, base.absolute().parent / KAGGLE_LABELS)
    labels = _Labels(root, next((path for path in tables if path.exists()), None))
    return _folder_parts(root, base / KAGGLE_FOLDER, labels, "ImageNet in Kaggle's layout, ")


def hugging_face(root: Path) -> dict[str, Part]:
    """data/train_images_*.tar.gz and data/val_images.tar.gz, or these tars uncompressed. `root` may be data."""
    parts = {}
    for folder in (root, root / "data"):
        train = _train_tars(folder)
        validation = [path for path in (folder / "val_images.tar", folder / "val_images.tar.gz") if path.is_file()][:1]
        for split, paths in (("train", train), ("validation", validation)):
            if paths:
                prefix = "ImageNet in Hugging Face's layout, " if split == "train" else ""
                text = f"{prefix}{len(paths)} {split} {'tar' if len(paths) == 1 else 'tars'} in {folder.name}/"
                shown = [str(path.relative_to(root)) for path in paths]
                parts[split] = Part(text, tuple(paths), partial(_read_labelled_tars, shown), tuple(paths))
    return parts


def class_folders(root: Path) -> dict[str, Part]:
    """train/<class>/* and validation/<class>/* (or val, valid, test), or ImageNet's images directly in validation/."""
    return _folder_parts(root, root, _Labels(root))


# The first that has the split is used: original files come before folders that a user made of them.
LAYOUTS: tuple[Callable[[Path], dict[str, Part]], ...] = (
    official_tars,
    kaggle,
    hugging_face,
    class_folders,
    parquet,
    webdataset,
    image_lists,
    tf_records,
    one_folder,
)


def recognize(root: str | Path) -> Layout:
    """Recognizes the layout of a folder by its files.

    Args:
        root: the folder, or a file with a list of images.

    Returns:
        The layout.

    Raises:
        UserError: the folder does not exist or its layout is not known.
    """
    root = user_path(root)
    if root.is_file():
        return Layout(root, image_list(root), ())
    if not root.is_dir():
        raise UserError("no such folder", path=root, remedy="choose the folder of the data set", setting="source")
    found, problem = _found(root)
    with_train = [parts for parts in found if "train" in parts]
    if not with_train or _is_train_of_another(root):
        raise problem or _without_training_images(root, found)
    parts = {"train": with_train[0]["train"]}
    # Validation comes from the layout of train if it has one, so that two copies are not mixed.
    for layout in (with_train[0], *found):
        if "validation" in layout:
            parts["validation"] = layout["validation"]
            break
    return Layout(root, parts, tuple(_unused(root, [path for part in parts.values() for path in part.paths])))


def _found(root: Path) -> tuple[list[dict[str, Part]], UserError | None]:
    """The parts of each layout that has some, and what is wrong with files that are not needed then."""
    found: list[dict[str, Part]] = []
    problem = None
    for look_for in LAYOUTS:
        try:
            parts = look_for(root)
        except UserError as error:
            # A list beside class folders may be of something else than images.
            if look_for is not image_lists and not any("train" in others for others in found):
                raise
            problem = error
        else:
            found += [parts] if parts else []
    return found, problem


def _is_train_of_another(root: Path) -> bool:
    """Whether the folder is the training half of a data set: its validation images would be left out."""
    above = root.absolute().parent
    return root.absolute().name == "train" and find_split(above, "validation") is not None


def _without_training_images(root: Path, found: Sequence[Mapping[str, Part]]) -> UserError:
    if root.absolute().name == "train":
        remedy = f"choose the folder above, {root.absolute().parent}"
        return UserError("this is the folder of the training images", path=root, remedy=remedy, setting="source")
    if found:
        what = f"only validation images found, {found[0]['validation'].text}: there is no train/<class>/"
        return UserError(what, path=root, remedy=f"add the training images: {WANTED}", setting="source")
    there = look(root)
    what = f"no training images found: the folder has {there.what}"
    return UserError(what, path=root, remedy=there.remedy, setting="source")


def _unused(root: Path, used: Sequence[Path]) -> list[str]:
    """The files and folders below `root` that are beside the used ones. Names that begin with a dot are ignored."""
    opened = {parent for path in used for parent in path.parents if parent == root or root in parent.parents}
    beside = (Path(item) for folder in sorted(opened) for item in os.scandir(folder) if not item.name.startswith("."))
    taken = opened.union(used)
    names = [path for path in beside if path not in taken]
    return sorted(f"{path.relative_to(root)}{'/' * path.is_dir()}" for path in names)


class _Labels:
    """The labels of ImageNet's validation images: built in, or from Kaggle's table."""

    def __init__(self, root: Path, table: Path | None = None) -> None:
        self._table = table
        self._devkit = root / DEVKIT if table is None and (root / DEVKIT).is_file() else None
        self.paths = tuple(path for path in (table, self._devkit) if path)
        source = table.name if table else "built in" + ", checked against the devkit" * bool(self._devkit)
        self.text = f"(labels: {source})"

    def read(self) -> Mapping[str, str]:
        """File name -> wnid; raises `UserError`."""
        if self._table:
            return imagenet.kaggle_labels(self._table)
        if self._devkit:
            imagenet.check_devkit(self._devkit)
        return imagenet.validation_labels()


def _folder_parts(root: Path, base: Path, labels: _Labels, prefix: str = "") -> dict[str, Part]:
    """The splits that are folders in `base`."""
    parts = {}
    for split in ("train", "validation"):
        if folder := find_split(base, split):
            flat = split != "train" and is_flat(folder)
            if not flat and not may_be_split(folder, split):
                continue
            shown = f"{folder.relative_to(root)}/" + (f"ILSVRC2012_val_*.JPEG {labels.text}" if flat else "<class>/")
            read = partial(_read_folder, root, folder, split, labels.read if flat else None)
            parts[split] = Part(prefix * (split == "train") + shown, (folder, *(labels.paths if flat else ())), read)
    return parts


def _read_folder(
    root: Path,
    folder: Path,
    split: str,
    labels: Callable[[], Mapping[str, str]] | None,
    _: Sequence[Path],
    classes: Sequence[str] | None,
) -> Listing:
    """Lists a split that is a folder; `labels` gives the classes of images that are not in class folders."""
    if split == "train":
        classes = list_classes(folder)
    return Listing(list_split(root, folder, classes, labels() if labels else None), classes)


def _train_tars(folder: Path) -> list[Path]:
    """train_images_0.tar.gz, train_images_1.tar.gz, …; of a tar that is there twice the uncompressed one."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("train_images_*")):  # .tar comes before .tar.gz
        if (match := _TRAIN_TAR.fullmatch(path.name)) and path.is_file():
            found.setdefault(int(match[1]), path)
    if missing := sorted(set(range(max(found, default=-1))) - set(found)):
        path = folder / f"train_images_{missing[0]}.tar.gz"
        raise UserError("the tar is missing, but later ones are there", path=path, remedy="download it")
    return list(found.values())


def _read_labelled_tars(shown: Sequence[str], tars: Sequence[Path], _: Sequence[str] | None) -> Listing:
    return Listing(_labelled_by_name(list_tar(path, name) for path, name in zip(tars, shown, strict=True)))


def _class_tars(path: Path) -> tuple[list[RejectedFile], list[tuple[str, Found]]]:
    """The members of a tar of <wnid>.tar: those that are something else, and (wnid, tar) of the others."""
    rejected: list[RejectedFile] = []
    tars: list[tuple[str, Found]] = []
    for item in list_tar(path, path.name):
        if isinstance(item, RejectedFile):
            rejected.append(item)
        elif match := _CLASS_TAR.fullmatch(item.name):
            tars.append((match[1], item))
        else:
            rejected.append(item.rejected("its name is not that of a class tar"))
    return rejected, tars


def _images_of(path: Path, tars: Iterable[tuple[str, Found]]) -> Iterator[Found | RejectedFile]:
    """The images in (wnid, tar in the tar `path`)."""
    for wnid, tar in tars:
        for item in list_tar(path, f"{path.name}/{tar.name}", tar.offset, tar.offset + tar.length):
            yield item if isinstance(item, RejectedFile) else item._replace(class_name=wnid)


def _labelled(items: Iterable[Found | RejectedFile], labels: Mapping[str, str]) -> Iterator[Found | RejectedFile]:
    """The files with the classes that `labels` gives for their names."""
    for item in items:
        if isinstance(item, RejectedFile):
            yield item
        elif item.name in labels:
            yield item._replace(class_name=labels[item.name])
        else:
            yield item.rejected("the label of this file name is not known")


def _labelled_by_name(listings: Iterable[Iterable[Found | RejectedFile]]) -> Iterator[Found | RejectedFile]:
    """The files with the classes that end their names, as in Hugging Face's tars."""
    for items in listings:
        for item in items:
            if isinstance(item, RejectedFile):
                yield item
                continue
            name, wnid = imagenet.split_name(item.name)
            yield (
                item._replace(class_name=wnid, name=name) if wnid else item.rejected("its name does not end in a wnid")
            )
