"""Classes of data sets that give each image a number: which class a number is."""

from collections.abc import Iterable, Sequence

from pipelines.building.sources import imagenet

NO_LABEL = "it has no label"


def names_of_numbers(samples: Iterable[tuple[int | str, str]], names: Sequence[str] | None) -> Sequence[str] | None:
    """The classes in the order of their numbers.

    For ImageNet they are wnids, so that its two classes "crane" are told apart, and all layouts of ImageNet give equal
    records. It is ImageNet if all file names that have a wnid agree with ImageNet's numbers.

    Args:
        samples: the label and the file name of some images.
        names: the names that the data set gives, if it does.

    Returns:
        The class of each number; None if nobody names them.
    """
    known = imagenet.wnids()
    pairs = {(label, wnid) for label, name in samples if (wnid := imagenet.wnid_in(name))}
    fits = all(isinstance(label, int) and 0 <= label < len(known) and known[label] == wnid for label, wnid in pairs)
    return known if pairs and fits and len(names or known) == len(known) else names


def class_of(label: int | str | None, names: Sequence[str] | None) -> tuple[str, str]:
    """The class of a label.

    Args:
        label: a number or a name.
        names: from `names_of_numbers`.

    Returns:
        (class, ""), or ("", why it has none).
    """
    if label is None or label == "" or label == -1:
        return "", NO_LABEL
    if isinstance(label, str):
        return label, ""
    if names is None:
        return (str(label), "") if label >= 0 else ("", f"its label {label} is negative")
    return (names[label], "") if 0 <= label < len(names) else ("", f"its label {label} belongs to no class")


def parsed(text: str) -> int | str:
    """A label as it is written: a number if it is one, else the name of a class."""
    text = text.strip()
    return int(text) if text.removeprefix("-").isdecimal() and text.isascii() else text
