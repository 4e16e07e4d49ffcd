"""The layouts of ImageNet and other data sets: one small function recognizes each."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from pipelines.building.sources import imagenet
from pipelines.building.sources.folders import find_splits, is_flat, read_folders
from pipelines.building.sources.source import Found, RejectedFile, Source, collect
from pipelines.building.sources.spool import Scratch, plain_tars
from pipelines.building.sources.tars import list_tar
from pipelines.errors import UserError

OFFICIAL_TRAIN, OFFICIAL_VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
KAGGLE_FOLDER, KAGGLE_LABELS = Path("Data/CLS-LOC"), "LOC_val_solution.csv"
_CLASS_TAR = re.compile(r"(n\d{8})\.tar")


@dataclass(frozen=True)
class Layout:
    """A layout that was recognized.

    Attributes:
        text: a description, one line.
        root: the folder.
        read: lists the images; for tars this may take minutes.
    """

    text: str
    root: Path
    read: Callable[[Scratch | None], Source]


def official_tars(root: Path) -> Layout | None:
    """ILSVRC2012_img_train.tar (a tar of <wnid>.tar) and, if they exist, ILSVRC2012_img_val.tar and the devkit."""
    train, validation, devkit = root / OFFICIAL_TRAIN, root / OFFICIAL_VALIDATION, root / DEVKIT
    if not train.is_file():
        return None
    text = f"ImageNet's official tars, {train.name}"
    if validation.is_file():
        text += f" and {validation.name} (labels: built in{', checked against the devkit' * devkit.is_file()})"

    def read(_: Scratch | None) -> Source:
        rejected, tars = _class_tars(train)
        splits: dict[str, Iterable[Found | RejectedFile]] = {"train": chain(rejected, _images_of(train, tars))}
        if validation.is_file():
            if devkit.is_file():
                imagenet.check_devkit(devkit)
            splits["validation"] = _labelled(list_tar(validation, validation.name), imagenet.validation_labels())
        return collect(text, root, splits, list(dict.fromkeys(name for name, _ in tars)))

    return Layout(text, root, read)


def kaggle(root: Path) -> Layout | None:
    """ILSVRC/Data/CLS-LOC/{train/<wnid>,val}, with LOC_val_solution.csv beside ILSVRC. `root` may be ILSVRC."""
    for base in (root / "ILSVRC", root):
        if folders := find_splits(base / KAGGLE_FOLDER):
            break
    else:
        return None
    table = next(
        (path for path in (base.absolute().parent / KAGGLE_LABELS, base / KAGGLE_LABELS) if path.is_file()), None
    )
    text = f"ImageNet in Kaggle's layout, {(base / KAGGLE_FOLDER).relative_to(root)}/"
    labels: Callable[[], Mapping[str, str]] = imagenet.validation_labels
    if "validation" in folders and is_flat(folders["validation"]):
        text += f" (labels: {table.name if table else 'built in'})"
        labels = partial(imagenet.kaggle_labels, table) if table else labels
    return Layout(text, root, lambda _: read_folders(text, root, folders, labels))


def hugging_face(root: Path) -> Layout | None:
    """data/train_images_*.tar.gz and data/val_images.tar.gz, or these tars uncompressed. `root` may be data."""
    for folder in (root / "data", root):
        train = sorted(path for kind in ("tar", "tar.gz") for path in folder.glob(f"train_images_*.{kind}"))
        if train:
            break
    else:
        return None
    validation = [path for path in (folder / "val_images.tar", folder / "val_images.tar.gz") if path.is_file()][:1]
    text = f"ImageNet in Hugging Face's layout, {len(train) + len(validation)} tars in {folder.name}/"

    def read(scratch: Scratch | None) -> Source:
        paths = train + validation
        listings = [
            list_tar(plain, str(path.relative_to(root)))
            for path, plain in zip(paths, plain_tars(paths, scratch), strict=True)
        ]
        splits: dict[str, Iterable[Found | RejectedFile]] = {"train": _labelled_by_name(listings[: len(train)])}
        if validation:
            splits["validation"] = _labelled_by_name(listings[len(train) :])
        return collect(text, root, splits)

    return Layout(text, root, read)


def class_folders(root: Path) -> Layout | None:
    """train/<class>/* and validation/<class>/* (or val), or ImageNet's validation images directly in validation/."""
    if not (folders := find_splits(root)):
        return None
    text = f"{folders['train'].name}/<class>/"
    if validation := folders.get("validation"):
        flat = is_flat(validation)
        text += (
            f", {validation.name}/ILSVRC2012_val_*.JPEG (labels: built in)" if flat else f", {validation.name}/<class>/"
        )
    return Layout(text, root, lambda _: read_folders(text, root, folders, imagenet.validation_labels))


# The first that is recognized is used: original files come before folders that a user made of them.
LAYOUTS: tuple[Callable[[Path], Layout | None], ...] = (official_tars, kaggle, hugging_face, class_folders)


def recognize(root: str | Path) -> Layout:
    """Recognizes the layout of a folder by its files.

    Args:
        root: the folder.

    Returns:
        The layout.

    Raises:
        UserError: the folder does not exist or its layout is not known.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError("no such folder", path=root, remedy="choose the folder of the data set", setting="source")
    for look in LAYOUTS:
        if layout := look(root):
            return layout
    if root.absolute().name == "train":
        remedy = f"choose the folder above, {root.absolute().parent}"
        raise UserError("this is the folder of the training images", path=root, remedy=remedy, setting="source")
    known = f"{OFFICIAL_TRAIN}, ILSVRC/{KAGGLE_FOLDER}/ or data/train_images_*.tar.gz"
    raise UserError(
        f"no images found: there is no train/<class>/, {known}",
        path=root,
        remedy="put the training images into train/<class>/",
        setting="source",
    )


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
