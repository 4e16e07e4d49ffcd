"""How much the images of each class count in the loss of a training: equally, by their number, or as a file says.

The weight of a class multiplies the loss of its images. A batch's loss is still divided by its number of images, so
weights whose mean over the records is 1 keep the scale of the gradient.
"""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import UserError, did_you_mean
from pipelines.shards.dataset import ClassInfo
from pipelines.system import json_text
from pipelines.system.reading import read_file

NONE, BALANCED = "none", "balanced"
_SETTING = "class_weights"


def class_weights(
    text: str, classes: Sequence[ClassInfo], labels: Callable[[], np.ndarray], kept: Sequence[float] | None = None
) -> np.ndarray | None:
    """The weights that a recipe asks for.

    Args:
        text: "none", "balanced", or a file of weights.
        classes: of the data set, in label order.
        labels: reads the classes of the training records, int [N]; called for "balanced" only.
        kept: the weights that a run has begun with; None: read the file.

    Returns:
        float32 [classes]; None if all images count the same.

    Raises:
        UserError: the file cannot be read, or does not fit the classes.
    """
    if text == NONE:
        return None
    if text == BALANCED:
        return balanced(labels(), len(classes))
    return np.array(read(Path(text), classes) if kept is None else kept, np.float32)


def balanced(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Weights with which all classes count the same: N / (C · n) for N records, C classes that have some, and n of one.

    Args:
        labels: int [N], from 0.
        num_classes: how many classes there are.

    Returns:
        float32 [num_classes]; 0 for a class without records. The mean over the records is 1.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = np.count_nonzero(counts)
    return np.where(counts > 0, len(labels) / (present * np.maximum(counts, 1)), 0).astype(np.float32)


def read(path: Path, classes: Sequence[ClassInfo]) -> list[float]:
    """Reads the weights of classes from a JSON object or a CSV file of lines `name,weight`.

    Args:
        path: the file; one that ends in .csv is CSV.
        classes: of the data set, in label order. A file names them by name or WordNet id.

    Returns:
        The weight of each class, in their order; 1 for those that the file does not name.

    Raises:
        UserError: it cannot be read, a weight is wrong, or a name is of no class, of several, or there twice.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
        pairs = _csv_pairs(text) if path.suffix.lower() == ".csv" else _json_pairs(text)
    except OSError as error:
        raise UserError(str(error.strerror), path=path, setting=_SETTING) from None
    except ValueError as error:
        raise UserError(f"cannot be read ({error})", path=path, setting=_SETTING) from None
    weights = [1.0] * len(classes)
    named: set[int] = set()
    for name, weight in pairs:
        label = _label_of(name, classes, path)
        if label in named:
            raise UserError(f"names the class {name!r} twice", path=path, setting=_SETTING)
        if not (math.isfinite(weight) and weight >= 0):
            what = f"the weight of {name!r} must be 0 or more, and finite, not {weight}"
            raise UserError(what, path=path, setting=_SETTING)
        named.add(label)
        weights[label] = weight
    if not any(weights):
        raise UserError("gives every class the weight 0", path=path, setting=_SETTING)
    return weights


def described(text: str, weights: np.ndarray, classes: Sequence[str]) -> str:
    """The weights in one line: the smallest, the largest, and how many classes have exactly 1."""
    low, high = int(np.argmin(weights)), int(np.argmax(weights))
    ones = int(np.count_nonzero(weights == 1))
    span = f"{weights[low]:.3g} ({classes[low]}) to {weights[high]:.3g} ({classes[high]})"
    return f"{text}: {span}" + (f"; {ones:,} of {len(weights):,} classes have 1" if ones else "")


def _json_pairs(text: str) -> list[tuple[str, float]]:
    found = json_text.parse(text)
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object of class names and weights")
    return [(name, _number(name, weight)) for name, weight in found.items()]


def _csv_pairs(text: str) -> list[tuple[str, float]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if wrong := next((row for row in rows if len(row) != 2), None):
        raise ValueError(f"a line has {len(wrong)} fields, not a name and a weight")
    if rows and rows[0][1].strip().lower() == "weight":  # the titles of the columns
        rows = rows[1:]
    return [(name.strip(), _number(name, weight)) for name, weight in rows]


def _number(name: str, weight: Any) -> float:
    try:
        if isinstance(weight, bool):
            raise TypeError
        return float(weight)
    except (TypeError, ValueError):
        raise ValueError(f"the weight of {name!r} is no number: {weight!r}") from None


def _label_of(name: str, classes: Sequence[ClassInfo], path: Path) -> int:
    labels = [label for label, known in enumerate(classes) if name in (known.name, known.wnid)]
    if len(labels) == 1:
        return labels[0]
    if labels:
        what, remedy = f"{len(labels)} classes have the name {name!r}", "use their WordNet ids"
    else:
        what, remedy = f"the data set has no class {name!r}", did_you_mean(name, [known.name for known in classes])
    raise UserError(what, path=path, remedy=remedy, setting=_SETTING)
