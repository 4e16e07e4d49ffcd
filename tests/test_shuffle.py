"""ShuffleSpec: which order a data set gets, that each version of it stays as it is, and how well classes are mixed."""

import hashlib

import numpy as np
import pytest

from pipelines import AugmentSpec, EpochPlan, UserError
from pipelines.building.mixing import distinct_labels_of_a_shuffle, mixing
from pipelines.order.first import BlockShuffle, RecordShuffle
from pipelines.order.spec import ShuffleSpec
from pipelines.order.window import KeyShuffle, WindowShuffle
from pipelines.shards.shard_set import ShardSet
from tests.helpers.synthetic_shards import synthetic_shards

FIRST = ShuffleSpec(1)
LARGE = synthetic_shards(100_000, 100)


@pytest.mark.parametrize(
    ("shards", "spec", "expected"),
    [
        (synthetic_shards(50_000), ShuffleSpec(), (2, 0, 1)),
        (synthetic_shards(50_001), ShuffleSpec(), (2, 36 * 64, 36)),  # 4 MB are 36 records
        (synthetic_shards(1_000_000), ShuffleSpec(), (2, 36 * 64, 36)),
        (synthetic_shards(60_000, is_sorted=True), ShuffleSpec(), (2, 8192, 8)),
        (synthetic_shards(60_000, record_bytes=1_000), ShuffleSpec(), (2, 58 * 64, 58)),  # at least 1,024 blocks
        (synthetic_shards(60_000, record_bytes=1_000, is_sorted=True), ShuffleSpec(), (2, 8192, 8)),
        (synthetic_shards(60_000, record_bytes=5_000_000), ShuffleSpec(), (2, 64, 1)),
        (LARGE, ShuffleSpec(window=0), (2, 0, 1)),
        (LARGE, ShuffleSpec(window=100_000), (2, 0, 1)),
        (LARGE, ShuffleSpec(window=99_999), (2, 99_999, 36)),
        (LARGE, ShuffleSpec(window=10), (2, 10, 1)),
        (LARGE, ShuffleSpec(window=320), (2, 320, 20)),
        (LARGE, ShuffleSpec(block_records=7), (2, 7 * 64, 7)),
        (synthetic_shards(100), ShuffleSpec(window=50), (2, 50, 1)),
        (synthetic_shards(50_001, quarantined=1), ShuffleSpec(), (2, 0, 1)),
        (synthetic_shards(50_000), FIRST, (1, 0, 1)),
        (LARGE, FIRST, (1, 0, 32)),
        (LARGE, ShuffleSpec(1, window=0), (1, 0, 1)),
        (LARGE, ShuffleSpec(1, block_records=5), (1, 0, 5)),
    ],
)
def test_the_data_set_decides_what_is_not_given(
    shards: ShardSet, spec: ShuffleSpec, expected: tuple[int, int, int]
) -> None:
    chosen = spec.resolved(shards)
    assert (chosen.version, chosen.window, chosen.block_records) == expected
    assert chosen.resolved(shards) == chosen
    version, window, block = expected
    kinds = {(1, True): RecordShuffle, (1, False): BlockShuffle, (2, True): KeyShuffle, (2, False): WindowShuffle}
    order = chosen.order(shards, 0, 0)
    assert type(order) is kinds[version, block == 1 if version == 1 else window == 0]
    np.testing.assert_array_equal(order.between(100, 200), spec.order(shards, 0, 0).between(100, 200))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"version": 3}, "version must be at most 2, not 3"),
        ({"version": 0}, "version must be at least 1, not 0"),
        ({"window": -1}, "window must be at least 0 records, not -1"),
        ({"block_records": 0}, "block_records must be at least 1 records, not 0"),
        ({"version": 1, "window": 5}, "an order of version 1, which an earlier release began, has no window"),
    ],
)
def test_wrong_choices_are_refused(fields: dict, what: str) -> None:
    with pytest.raises(UserError) as caught:
        ShuffleSpec(**fields)
    assert caught.value.what == what


# The orders of these shards never change: a run that continues under another release or NumPy gets the same records.
GOLDEN: dict[str, tuple[ShardSet, ShuffleSpec, list[int], str]] = {
    "version 1, records": (
        synthetic_shards(1000, 7),
        ShuffleSpec(1),
        [919, 225, 21, 78, 70, 40, 82, 156, 66, 517, 275, 127],
        "71a36940f7a2003a",
    ),
    "version 1, blocks": (
        synthetic_shards(1000, 7),
        ShuffleSpec(1, block_records=32),
        [870, 952, 897, 936, 973, 996, 980, 985, 986, 978, 962, 989],
        "1c2cd857df2e4b08",
    ),
    "version 2, records": (
        synthetic_shards(1000, 7),
        ShuffleSpec(2),
        [451, 710, 594, 126, 355, 922, 250, 578, 77, 353, 110, 721],
        "c37225d125e6e787",
    ),
    "version 2, blocks": (
        synthetic_shards(1000, 7, quarantined=3),
        ShuffleSpec(2, window=100, block_records=5),
        [621, 12, 357, 696, 499, 635, 67, 593, 659, 972, 192, 242],
        "d08de769fbe9cc8b",
    ),
    "version 2, many records": (
        synthetic_shards(60_000, 50),
        ShuffleSpec(2),
        [24863, 49647, 1514, 34048, 22633, 21707, 8164, 59456, 58558, 40178, 1335, 12355],
        "c64aa60e8c15418e",
    ),
    "version 2, sorted shards": (
        synthetic_shards(60_000, 50, is_sorted=True),
        ShuffleSpec(2),
        [56748, 6861, 34953, 18560, 58012, 5201, 48792, 25995, 34378, 55990, 49558, 19581],
        "68a88a9a70e18dc8",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_an_order_stays_as_it_is(name: str) -> None:
    shards, spec, first, digest = GOLDEN[name]
    order = spec.order(shards, 7, 3)
    assert order.between(0, 12).tolist() == first
    whole = order.between(0, order.length).astype("<i8").tobytes()
    assert hashlib.sha256(whole).hexdigest()[:16] == digest


def test_a_digest_tells_orders_apart() -> None:
    specs = [ShuffleSpec(), FIRST, ShuffleSpec(window=0), ShuffleSpec(window=5000), ShuffleSpec(block_records=35)]
    digests = [spec.digest(LARGE, 0) for spec in specs]
    digests += [ShuffleSpec().digest(LARGE, 1), ShuffleSpec().digest(synthetic_shards(100_001, 100), 0)]
    assert len(set(digests)) == len(digests)
    assert ShuffleSpec().digest(LARGE, 0) == digests[0]
    assert ShuffleSpec().digest(synthetic_shards(3), 0) != FIRST.digest(synthetic_shards(3), 0)


def test_a_digest_sees_a_change_of_numpys_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = synthetic_shards(3000)
    before, own = FIRST.digest(shards, 0), ShuffleSpec().digest(shards, 0)
    default_rng = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: default_rng([*seed, 1]))
    assert FIRST.digest(shards, 0) != before
    assert ShuffleSpec().digest(shards, 0) == own


@pytest.mark.parametrize(("is_sorted", "most"), [(True, 1.02), (False, 1.02)])
@pytest.mark.parametrize("batch", [64, 256])
def test_batches_have_as_many_classes_as_those_of_a_global_shuffle(is_sorted: bool, most: float, batch: int) -> None:
    """ImageNet's shape, 1,000 classes in sorted or in shuffled shards. A global shuffle: 62 and 226 classes."""
    count = 256_000
    shards = synthetic_shards(count, 256, is_sorted=is_sorted)
    labels = np.arange(count) * 1000 // count
    if not is_sorted:
        labels = np.random.default_rng(0).permutation(labels)
    plan = EpochPlan(shards, AugmentSpec.train(), batch, 224)
    in_batches = np.sort(labels[plan.records].reshape(-1, batch))
    distinct = 1 + np.count_nonzero(np.diff(in_batches), axis=1)
    expected = distinct_labels_of_a_shuffle(labels, batch)
    assert expected == pytest.approx({64: 62.0, 256: 226.2}[batch], abs=0.2)
    assert distinct.mean() == pytest.approx(expected, rel=0.02)
    assert distinct[[0, -1]].min() > 0.75 * expected  # the ends of the epoch, where fewer blocks are open


def test_blocks_of_sorted_shards_that_nobody_noticed() -> None:
    """What the notice of `build_index` is for: with blocks of 36 a batch of 256 has few classes."""
    shards, labels = synthetic_shards(256_000, 256), np.arange(256_000) // 256
    batches = np.sort(labels[EpochPlan(shards, AugmentSpec.train(), 256, 224).records].reshape(-1, 256))
    assert 1 + np.count_nonzero(np.diff(batches), axis=1).mean() < 100


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.arange(64_000) // 64, 0.0),
        (np.arange(64_000) // 640, 0.0),
        (np.arange(64_000) % 1000, 1.03),
        (np.arange(64_000) // 32 % 1000, 0.016),
        (np.random.default_rng(0).permutation(np.arange(64_000) % 1000), 1.0),
        (np.random.default_rng(0).permutation(np.arange(64_000) % 2), 1.0),
        (np.zeros(100, int), 1.0),
        (np.array([3, 4]), 1.0),
        (np.array([], int), None),
    ],
)
def test_mixing(labels: np.ndarray, expected: float | None) -> None:
    assert mixing(labels) == (expected if expected is None else pytest.approx(expected, abs=0.01))
