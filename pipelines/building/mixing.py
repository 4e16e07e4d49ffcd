"""How well the classes of neighbouring records are mixed: shards that others have written may be sorted by class."""

import numpy as np

RUN_RECORDS = 64


def mixing(labels: np.ndarray) -> float | None:
    """Compares the labels in runs of 64 consecutive records with those in runs of shuffled records.

    Args:
        labels: int64 [N], of the records in file order.

    Returns:
        (distinct labels in a run − 1) / (the same for a shuffle − 1), means over all runs: about 0 if the records are
        sorted, about 1 if they are shuffled. None without records; 1 if all have the same label.
    """
    if not len(labels):
        return None
    size = min(RUN_RECORDS, len(labels))
    runs = np.sort(labels[: len(labels) // size * size].reshape(-1, size), axis=1)
    distinct = np.count_nonzero(np.diff(runs, axis=1), axis=1).mean()
    shuffled = distinct_labels_of_a_shuffle(labels, size) - 1
    return round(float(distinct / shuffled), 3) if shuffled else 1.0


def distinct_labels_of_a_shuffle(labels: np.ndarray, size: int) -> float:
    """The mean number of distinct labels among `size` of the records, drawn at random without repetition."""
    others = len(labels) - np.unique(labels, return_counts=True)[1]  # records that do not have each of the labels
    drawn = np.arange(size)[:, None]
    is_absent = np.prod(np.maximum(0, others - drawn) / (len(labels) - drawn), axis=0)
    return float(np.sum(1 - is_absent))
