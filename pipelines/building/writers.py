"""What other writers say of their shards: the names of the features, and of the classes.

tensorflow-datasets keeps both in files beside the shards. For shards without such files the first record decides.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.building.shard_scan import check_framing
from pipelines.building.sources.source import class_info
from pipelines.errors import UserError, reason
from pipelines.shards import records
from pipelines.shards.dataset import USUAL_FEATURES, ClassInfo, Features
from pipelines.shards.index import open_shard, walk
from pipelines.system.reading import map_file, read_file

TFDS_FEATURES = "features.json"
TFDS_LABEL_BASE = 0
_NO_LABEL = -1  # of tensorflow-datasets and others, for test images whose class is secret
_USUAL = "image", "label"
# For shards without files beside them: the first whose image and label the first record has.
_KNOWN = (
    USUAL_FEATURES,
    Features(image="image", label="label", filename="file_name"),
    Features(image="image", label="class", filename="file_name"),
    Features(image="image_raw", label="label", filename="filename"),
)


@dataclass(frozen=True)
class RecordFormat:
    """What is known of shards before their records are read.

    Attributes:
        features: the names of the features.
        classes: in label order, from the label 0 on; None if no file names them.
        unlabelled: the splits whose records have no labels.
    """

    features: Features = USUAL_FEATURES
    classes: tuple[ClassInfo, ...] | None = None
    unlabelled: tuple[str, ...] = ()


def read_format(directory: Path, splits: Mapping[str, Sequence[str]]) -> RecordFormat:
    """Reads the files beside the shards of a folder, and the first record of each split.

    Args:
        directory: the folder.
        splits: the file names of each split's shards.

    Returns:
        What they say. For shards that are damaged or of an unknown writer it is the format of keras_imagenet.

    Raises:
        UserError: features.json has no image, no label or several of one, or a file cannot be read.
    """
    firsts = {split: _first(directory / names[0]) for split, names in splits.items()}
    features, classes = USUAL_FEATURES, None
    if (directory / TFDS_FEATURES).is_file():
        features, classes = _tfds(directory)
    else:
        found = [known for known in _KNOWN for first in firsts.values() if _fits(known, first)]
        features = found[0] if found else features
    unlabelled = tuple(split for split, first in firsts.items() if first.get(features.label) == _NO_LABEL)
    return RecordFormat(features, classes, unlabelled)


def _first(path: Path) -> dict[str, int | type | None]:
    """The features of the first record: name -> the value of a number, the type of anything else; {} if damaged."""
    try:
        check_framing(path)
        with open_shard(path) as file:
            shard = map_file(path)
            offset, size, problem = next(walk(file))
            body = shard[offset + records.HEADER_BYTES : offset + size - records.FOOTER_BYTES]
            found = {} if problem else records.decode_example(body)
    except (UserError, ValueError):  # the scan names it, with all it knows
        return {}
    return {name: value if isinstance(value, int) else type(value) for name, value in found.items()}


def _fits(features: Features, first: Mapping[str, object]) -> bool:
    return first.get(features.image) is memoryview and isinstance(first.get(features.label), int)


def _tfds(directory: Path) -> tuple[Features, tuple[ClassInfo, ...] | None]:
    """What tensorflow-datasets' features.json and label.labels.txt say."""
    path = directory / TFDS_FEATURES
    try:
        found: dict[str, Any] = json.loads(read_file(path))["featuresDict"]["features"]
    except OSError as error:
        raise UserError(reason(error), path=path) from None
    except (ValueError, KeyError, TypeError) as error:
        what = f"not the features of a data set of tensorflow-datasets ({type(error).__name__})"
        raise UserError(what, path=path, remedy="copy it again, or remove it: then the records decide") from None
    image, label = (_one(path, found, kind, usual) for kind, usual in zip(("image", "classLabel"), _USUAL, strict=True))
    texts = [name for name, feature in found.items() if "text" in feature and "name" in name]
    features = Features(image=image, label=label, filename=texts[0] if texts else USUAL_FEATURES.filename)
    return features, _tfds_classes(directory, label, found[label]["classLabel"])


def _one(path: Path, found: Mapping[str, Mapping[str, Any]], kind: str, usual: str) -> str:
    """The name of the feature of a kind; of several the one with the usual name."""
    names = [name for name, feature in found.items() if kind in feature]
    if len(names) == 1 or usual in names:
        return usual if usual in names else names[0]
    kinds = {"image": "image", "classLabel": "class label"}
    what = f"it has {'several features that are' if names else 'no feature that is'} {kinds[kind]}"
    listed = ", ".join(names or found)
    remedy = "kimagenet takes data sets with one image and one label; choose another one"
    raise UserError(f"{what} (features: {listed})", path=path, remedy=remedy)


def _tfds_classes(directory: Path, label: str, feature: Mapping[str, Any]) -> tuple[ClassInfo, ...] | None:
    names = directory / f"{label}.labels.txt"
    count = int(feature.get("numClasses", 0))
    try:
        lines = read_file(names).decode().splitlines()
    except FileNotFoundError:
        return tuple(ClassInfo(name=f"class {number}") for number in range(count)) or None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", path=names, remedy="copy it again") from None
    if count and len(lines) != count:
        what = f"has {len(lines):,} names, but {TFDS_FEATURES} says {count:,} classes"
        raise UserError(what, path=names, remedy="copy both again")
    return tuple(map(class_info, lines)) or None
