"""The report of an evaluation: lines for the terminal, and the content of its JSON file."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kimagenet.inference.tally import Tally
from kimagenet.json_output import finite

if TYPE_CHECKING:
    from pipelines.images import ImageFile

EVALUATION_VERSION = 1
_NAME_WIDTH = 32


def lines(tally: Tally, per_class: bool = False, confusions: int = 0, calibration: bool = False) -> Iterator[str]:
    """The lines for the terminal.

    Args:
        tally: the counts.
        per_class: add a table of all classes.
        confusions: add this many of the most frequent confusions.
        calibration: add the table of calibration.
    """
    yield f"top-1 {tally.top1:.4%} ({tally.top1_correct:,})  top-5 {tally.top5:.4%} ({tally.top5_correct:,})"
    yield f"cross-entropy {tally.loss:.6f}"
    if per_class:
        yield from per_class_lines(tally)
    if confusions:
        yield f"\n{'class':{_NAME_WIDTH}} {'taken for':{_NAME_WIDTH}} {'records':>9} {'share':>8}"
        for pair in tally.confusions(confusions):
            yield f"{_cut(pair.label)} {_cut(pair.predicted)} {pair.records:>9,} {pair.share:>8.2%}"
    if calibration:
        yield f"\nexpected calibration error {tally.calibration_error():.4f}"
        yield f"{'probability':15} {'records':>9} {'mean':>8} {'right':>8}"
        for part in tally.bins():
            if part.records:
                span = f"{part.low:.3f} to {part.high:.3f}"
                yield f"{span:15} {part.records:>9,} {part.confidence:>8.2%} {part.accuracy:>8.2%}"


def per_class_lines(tally: Tally) -> Iterator[str]:
    """The table of all classes."""
    yield f"\n{'class':{_NAME_WIDTH}} {'records':>9} {'top-1':>8} {'top-5':>8}  most often taken for"
    for found in tally.classes():
        top1, top5 = (_share(n, found.records) for n in (found.top1_correct, found.top5_correct))
        yield f"{_cut(found.name)} {found.records:>9,} {top1:>8} {top5:>8}  {found.taken_for or ''}".rstrip()


def content(
    measured: dict[str, Any],
    tally: Tally,
    rejected: "Sequence[tuple[ImageFile, str]]" = (),
    per_class: bool = False,
    confusions: int = 0,
    calibration: bool = False,
) -> dict[str, Any]:
    """The JSON of an evaluation, version 1.

    It always has `version`, the fields of `measured`, `records`, `top1` and `top5` (shares), `top1_correct`,
    `top5_correct`, `loss` (mean cross-entropy, null if it is not finite) and `rejected` (`file`, `reason`). On request
    it has `per_class`, `confusions` and `calibration` (`error`, `bins`), with the fields of `ClassCount`, `Confusion`
    and `Bin`.

    Args:
        measured: `model`, `dataset_dir`, `split`, `crop_ratio`, `skipped` (number of corrupt records left out).
        tally: the counts.
        rejected: image files that could not be read, with the reason.
        per_class: add all classes.
        confusions: add this many of the most frequent confusions.
        calibration: add the calibration.
    """
    found: dict[str, Any] = {"version": EVALUATION_VERSION, **measured, "records": tally.records}
    found |= {name: getattr(tally, name) for name in ("top1", "top5", "top1_correct", "top5_correct")}
    found["loss"] = finite(tally.loss)
    found["rejected"] = [{"file": str(file.path), "reason": reason} for file, reason in rejected]
    if per_class:
        found["per_class"] = [part._asdict() for part in tally.classes()]
    if confusions:
        found["confusions"] = [pair._asdict() for pair in tally.confusions(confusions)]
    if calibration:
        bins = [part._replace(confidence=finite(part.confidence))._asdict() for part in tally.bins()]
        found["calibration"] = {"error": finite(tally.calibration_error()), "bins": bins}
    return found


def _share(count: int, total: int) -> str:
    return f"{count / total:.2%}" if total else ""


def _cut(name: str) -> str:
    return f"{name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 1] + '…':{_NAME_WIDTH}}"
