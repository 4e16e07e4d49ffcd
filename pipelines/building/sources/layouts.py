"""How ImageNet and other data sets lie on disks: one small function for each layout looks whether it is there."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from pipelines.building.sources import imagenet
from pipelines.building.sources.folders import find_splits, is_flat, read_folders
from pipelines.building.sources.source import Found, Rejected, Source, collect
from pipelines.building.sources.spool import Scratch, plain_tars
from pipelines.building.sources.tars import list_tar
from pipelines.errors import UserError

OFFICIAL_TRAIN, OFFICIAL_VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
KAGGLE_FOLDER, KAGGLE_LABELS = Path("Data/CLS-LOC"), "LOC_val_solution.csv"
_CLASS_TAR = re.compile(r"(n\d{8})\.tar")


@dataclass(frozen=True)
class Layout:
    """A recognized layout: its description, one line, and how its images are listed (which may take minutes)."""

    text: str
    root: Path
    read: Callable[[Scratch | None], Source]


def official_tars(root: Path) -> Layout | None:
    """ILSVRC2012_img_train.tar (a tar of <wnid>.tar), ILSVRC2012_img_val.tar and the devkit if they are there."""
    train, validation, devkit = root / OFFICIAL_TRAIN, root / OFFICIAL_VALIDATION, root / DEVKIT
    if not train.is_file():
        return None
    text = f"ImageNet's official tars, {train.name}"
    if validation.is_file():
        text += f" and {validation.name} (labels: built in{', checked against the devkit' * devkit.is_file()})"

    def read(_: Scratch | None) -> Source:
        rejected, tars = _class_tars(train)
        splits: dict[str, Iterable[Found | Rejected]] = {"train": chain(rejected, _images_of(train, tars))}
        if validation.is_file():
            if devkit.is_file():
                imagenet.check_devkit(devkit)
            splits["validation"] = _labelled(list_tar(validation, validation.name), imagenet.validation_labels())
        return collect(text, root, splits, list(dict.fromkeys(name for name, _ in tars)))

    return Layout(text, root, read)


def kaggle(root: Path) -> Layout | None:
    """ILSVRC/Data/CLS-LOC/{train/<wnid>,val}; LOC_val_solution.csv lies beside ILSVRC. `root` may be ILSVRC."""
    for base in (root / "ILSVRC", root):
        if folders := find_splits(base / KAGGLE_FOLDER):
            break
    else:
        return None
    table = next(
        (path for path in (base.absolute().parent / KAGGLE_LABELS, base / KAGGLE_LABELS) if path.is_file()), None
    )
    text = f"ImageNet as Kaggle has it, {(base / KAGGLE_FOLDER).relative_to(root)}/"
    labels: Callable[[], Mapping[str, str]] = imagenet.validation_labels
    if "validation" in folders and is_flat(folders["validation"]):
        text += f" (labels: {table.name if table else 'built in'})"
        labels = partial(imagenet.kaggle_labels, table) if table else labels
    return Layout(text, root, lambda _: read_folders(text, root, folders, labels))


def hugging_face(root: Path) -> Layout | None:
    """data/train_images_*.tar.gz and data/val_images.tar.gz, or plain tars of these names; `root` may be data."""
    for folder in (root / "data", root):
        train = sorted(path for kind in ("tar", "tar.gz") for path in folder.glob(f"train_images_*.{kind}"))
        if train:
            break
    else:
        return None
    validation = [path for path in (folder / "val_images.tar", folder / "val_images.tar.gz") if path.is_file()][:1]
    text = f"ImageNet as Hugging Face has it, {len(train) + len(validation)} tars in {folder.name}/"

    def read(scratch: Scratch | None) -> Source:
        paths = train + validation
        listings = [
            list_tar(plain, str(path.relative_to(root)))
            for path, plain in zip(paths, plain_tars(paths, scratch), strict=True)
        ]
        splits: dict[str, Iterable[Found | Rejected]] = {"train": _labelled_by_name(listings[: len(train)])}
        if validation:
            splits["validation"] = _labelled_by_name(listings[len(train) :])
        return collect(text, root, splits)

    return Layout(text, root, read)


def class_folders(root: Path) -> Layout | None:
    """train/<class>/* and validation/<class>/* (or val); or ImageNet's validation images flat in validation/."""
    if not (folders := find_splits(root)):
        return None
    text = f"{folders['train'].name}/<class>/"
    if validation := folders.get("validation"):
        flat = is_flat(validation)
        text += (
            f", {validation.name}/ILSVRC2012_val_*.JPEG (labels: built in)" if flat else f", {validation.name}/<class>/"
        )
    return Layout(text, root, lambda _: read_folders(text, root, folders, imagenet.validation_labels))


# The first that is there is taken: what is as it was published comes before what somebody made of it.
LAYOUTS: tuple[Callable[[Path], Layout | None], ...] = (official_tars, kaggle, hugging_face, class_folders)


def recognize(root: str | Path) -> Layout:
    """The layout of a folder, by looking. Raises `UserError` if it has none that is known."""
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --source is the folder that holds the data set")
    for look in LAYOUTS:
        if layout := look(root):
            return layout
    if root.absolute().name == "train":
        raise UserError(f"{root}: --source is the folder above, {root.absolute().parent}, which holds train/<class>/")
    known = f"{OFFICIAL_TRAIN}, ILSVRC/{KAGGLE_FOLDER}/, data/train_images_*.tar.gz"
    raise UserError(f"{root}: there is no folder train/<class>/ with the training images in it, nor {known}")


def _class_tars(path: Path) -> tuple[list[Rejected], list[tuple[str, Found]]]:
    """What a tar of <wnid>.tar holds: what is none of these, and (wnid, tar) of those that are."""
    rejected: list[Rejected] = []
    tars: list[tuple[str, Found]] = []
    for item in list_tar(path, path.name):
        if isinstance(item, Rejected):
            rejected.append(item)
        elif match := _CLASS_TAR.fullmatch(item.name):
            tars.append((match[1], item))
        else:
            rejected.append(item.rejected("not the tar of a class"))
    return rejected, tars


def _images_of(path: Path, tars: Iterable[tuple[str, Found]]) -> Iterator[Found | Rejected]:
    for wnid, tar in tars:
        for item in list_tar(path, f"{path.name}/{tar.name}", tar.offset, tar.offset + tar.length):
            yield item if isinstance(item, Rejected) else item._replace(class_name=wnid)


def _labelled(items: Iterable[Found | Rejected], labels: Mapping[str, str]) -> Iterator[Found | Rejected]:
    for item in items:
        if isinstance(item, Rejected):
            yield item
        elif item.name in labels:
            yield item._replace(class_name=labels[item.name])
        else:
            yield item.rejected("no label is known for this name")


def _labelled_by_name(listings: Iterable[Iterable[Found | Rejected]]) -> Iterator[Found | Rejected]:
    for items in listings:
        for item in items:
            if isinstance(item, Rejected):
                yield item
                continue
            name, wnid = imagenet.split_name(item.name)
            yield item._replace(class_name=wnid, name=name) if wnid else item.rejected("its name ends in no class")
