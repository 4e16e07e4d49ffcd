"""The tables of an evaluation, compared with counts of single images."""

import json
import tracemalloc

import numpy as np
import pytest

from kimagenet.inference import report
from kimagenet.inference.outputs import Outputs
from kimagenet.inference.tally import CALIBRATION_BINS, Tally

NAMES = tuple("abcdefgh")


def outputs(rng: np.random.Generator, count: int, padding: int = 0) -> Outputs:
    """Outputs of an invented model that is correct half of the time."""
    probabilities = rng.dirichlet(np.full(len(NAMES), 0.3), count).astype(np.float32)
    classes = np.argsort(-probabilities, axis=1, kind="stable")[:, :5].astype(np.int32)
    labels = np.where(rng.random(count) < 0.5, classes[:, 0], rng.integers(0, len(NAMES), count)).astype(np.int32)
    weights = np.ones(count, np.float32)
    weights[count - padding :] = 0
    best = np.take_along_axis(probabilities, classes, axis=1)
    losses = -np.log(np.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0])
    return Outputs(classes, best, losses.astype(np.float32), labels, weights)


def of(*batches: Outputs) -> Tally:
    tally = Tally(NAMES)
    for batch in batches:
        tally.add(batch)
    return tally


@pytest.fixture(scope="module")
def batches() -> list[Outputs]:
    rng = np.random.default_rng(0)
    return [outputs(rng, 50), outputs(rng, 50), outputs(rng, 50, padding=13)]


@pytest.fixture(scope="module")
def images(batches: list[Outputs]) -> list[tuple]:
    """(classes, highest probability, loss, label) of each image that is counted."""
    return [
        (classes.tolist(), float(best[0]), float(loss), int(label))
        for batch in batches
        for classes, best, loss, label, weight in zip(*batch, strict=True)
        if weight
    ]


def test_accuracy_and_loss(batches: list[Outputs], images: list[tuple]) -> None:
    tally = of(*batches)
    assert tally.records == len(images) == 137
    assert tally.top1_correct == sum(classes[0] == label for classes, _, _, label in images)
    assert tally.top5_correct == sum(label in classes for classes, _, _, label in images)
    assert tally.loss == pytest.approx(np.mean([loss for _, _, loss, _ in images]))


def test_classes_and_confusions(batches: list[Outputs], images: list[tuple]) -> None:
    tally = of(*batches)
    counts = {(a, b): 0 for a in range(8) for b in range(8)}
    for classes, _, _, label in images:
        counts[label, classes[0]] += 1
    for label, found in enumerate(tally.classes()):
        mine = [image for image in images if image[3] == label]
        assert (found.name, found.records) == (NAMES[label], len(mine))
        assert found.top1_correct == counts[label, label]
        assert found.top5_correct == sum(label in classes for classes, *_ in mine)
        most = max((counts[label, b], -b) for b in range(8) if b != label)
        assert found.taken_for == NAMES[-most[1]]
    wanted = sorted(((-n, a, b) for (a, b), n in counts.items() if a != b and n))[:6]
    assert [(-p.records, NAMES.index(p.label), NAMES.index(p.predicted)) for p in tally.confusions(6)] == wanted
    first = tally.confusions(1)[0]
    assert first.share == first.records / sum(counts[NAMES.index(first.label), b] for b in range(8))
    assert len(tally.confusions(1000)) == sum(n > 0 for (a, b), n in counts.items() if a != b)


def test_calibration(batches: list[Outputs], images: list[tuple]) -> None:
    tally = of(*batches)
    error = 0.0
    for number, found in enumerate(tally.bins()):
        low, high = number / CALIBRATION_BINS, (number + 1) / CALIBRATION_BINS
        mine = [(p, classes[0] == label) for classes, p, _, label in images if low < p <= high]
        assert (found.low, found.high, found.records) == (pytest.approx(low), pytest.approx(high), len(mine))
        if mine:
            confidence, accuracy = np.mean(mine, axis=0)
            assert (found.confidence, found.accuracy) == (pytest.approx(confidence), pytest.approx(accuracy))
            error += len(mine) / len(images) * abs(confidence - accuracy)
        else:
            assert found.confidence is found.accuracy is None
    assert tally.calibration_error() == pytest.approx(error)


def test_the_edges_of_bins_and_probabilities() -> None:
    """(low, high]: probability 1 is in the last bin, 0 in the first."""
    certain = np.array([1.0, 0.0, 0.5], np.float32)
    batch = Outputs(np.zeros((3, 1), np.int32), certain[:, None], np.zeros(3), np.zeros(3, np.int32), np.ones(3))
    assert [part.records for part in of(batch).bins()] == [1, *[0] * 6, 1, *[0] * 6, 1]


def test_nan_is_never_correct_and_is_reported() -> None:
    rng = np.random.default_rng(1)
    batch = outputs(rng, 20)
    spoilt = batch._replace(
        probabilities=np.full_like(batch.probabilities, np.nan), losses=np.full_like(batch.losses, np.nan)
    )
    tally = of(batch, spoilt)
    assert (tally.records, tally.top1_correct) == (40, of(batch).top1_correct)
    assert np.isnan(tally.loss)
    assert np.isnan(tally.calibration_error())
    found = report.content({}, tally, calibration=True)
    assert found["loss"] is found["calibration"]["error"] is None
    json.dumps(found, allow_nan=False)


def test_the_report_shows_the_counts(batches: list[Outputs]) -> None:
    tally = of(*batches)
    assert len(list(report.lines(tally))) == 2
    text = "\n".join(report.lines(tally, per_class=True, confusions=3, calibration=True))
    found = report.content({"model": "m"}, tally, [], per_class=True, confusions=3, calibration=True)
    assert (found["version"], found["model"], found["rejected"]) == (1, "m", [])
    assert [part["name"] for part in found["per_class"]] == list(NAMES)
    first = found["per_class"][0]
    line = next(line for line in text.splitlines() if line.startswith("a "))
    assert line.split() == [
        "a",
        str(first["records"]),
        f"{first['top1_correct'] / first['records']:.2%}",
        f"{first['top5_correct'] / first['records']:.2%}",
        first["taken_for"],
    ]
    assert len(found["confusions"]) == 3
    assert f"{found['confusions'][0]['share']:.2%}" in text
    assert sum(part["records"] for part in found["calibration"]["bins"]) == found["records"]
    assert f"expected calibration error {found['calibration']['error']:.4f}" in text


def test_many_classes_take_memory_for_what_is_shown() -> None:
    """The table of all pairs of 21,841 classes has 3.8 GB."""
    count = 21_841
    rng = np.random.default_rng(0)
    labels, classes = rng.integers(0, count, 5000), rng.integers(0, count, (5000, 5))
    best = np.full((5000, 5), 0.2, np.float32)
    tracemalloc.start()
    tally = Tally(tuple(map(str, range(count))))
    for _ in range(2):
        tally.add(Outputs(classes, best, np.ones(5000, np.float32), labels, np.ones(5000)))
    found = tally.classes()
    confusions = tally.confusions(5)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()
    assert sum(part.records for part in found) == 10_000
    assert [pair.records for pair in confusions] == [2] * 5
    assert len(tally.confusions(10_000)) == len({*zip(labels.tolist(), classes[:, 0].tolist(), strict=True)})


def test_equal_counts_come_in_label_order() -> None:
    labels, first = np.array([2, 0, 2, 0, 1]), np.array([0, 3, 3, 1, 1])
    tally = of(Outputs(first[:, None], np.ones((5, 1)), np.zeros(5), labels, np.ones(5)))
    assert [(p.label, p.predicted) for p in tally.confusions(9)] == [("a", "b"), ("a", "d"), ("c", "a"), ("c", "d")]
    assert [part.taken_for for part in tally.classes()][:4] == ["b", None, "a", None]


def test_long_names_and_absent_classes() -> None:
    tally = Tally(("n" * 50, "empty"))
    tally.add(Outputs(np.zeros((1, 1), int), np.ones((1, 1)), np.zeros(1), np.zeros(1, int), np.ones(1)))
    lines = list(report.lines(tally, per_class=True))
    assert lines[-2].split() == ["n" * 31 + "…", "1", "100.00%", "100.00%"]
    assert lines[-1].split() == ["empty", "0"]
