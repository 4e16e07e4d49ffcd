"""Mixup, CutMix, random erasing: arithmetic is tested exactly, draws by their distribution."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kimagenet.recipe import Recipe
from kimagenet.training import mixing
from kimagenet.training.loop import Loop
from kimagenet.training.mixing import MixSpec, blend, draw, mix, symmetric_beta
from kimagenet.training.results import Position
from kimagenet.training.steps import make_training_step
from pipelines import UserError
from tests.helpers.data import NUM_CLASSES
from tests.test_loop import IMAGE_SIZE, make_model, open_split, weights_of

BATCH, SIZE = 3000, 24
ALL = MixSpec(mixup=0.2, cutmix=1.0, erase=0.3)


def numbered(batch: int = BATCH, height: int = SIZE, width: int = SIZE) -> tuple[tf.Tensor, tf.Tensor]:
    """Even images are all 1, odd ones all −1, with targets to match, so that any mixture can be recognized."""
    even = np.arange(batch) % 2 == 0
    images = np.where(even, 1.0, -1.0).astype(np.float32)[:, None, None, None] * np.ones((1, height, width, 3))
    return tf.constant(images, tf.float32), tf.one_hot(np.where(even, 0, 1), 2)


def own_weights(spec: MixSpec, height: int = SIZE, width: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """The weight of an image in its mixture, pixel by pixel [B, H, W], and in its targets [B]."""
    images, targets = numbered(height=height, width=width)
    mixed, mixed_targets = mix(images, targets, spec, draw(BATCH, 3, 0, 0))
    sign = images.numpy()[:, :1, :1, 0]
    weights = (1 + sign * mixed.numpy()[..., 0]) / 2
    return weights, np.sum(targets.numpy() * mixed_targets.numpy(), axis=1)


def distance(sample: np.ndarray, reference: np.ndarray) -> float:
    """The statistic of Kolmogorov and Smirnov: the largest difference of the two distribution functions."""
    at = np.sort(np.concatenate([sample, reference]))
    both = [np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (sample, reference)]
    return float(np.abs(both[0] - both[1]).max())


def test_blend_by_hand() -> None:
    images = tf.constant([1.0, 2.0, 4.0])[:, None, None, None] * tf.ones((1, 1, 2, 3))
    own = tf.constant([[1.0, 0.5], [0.0, 1.0], [0.25, 0.25]])[:, None, :, None]
    mixed, targets = blend(images, tf.eye(3), own)
    assert mixed.numpy()[:, 0, :, 0].tolist() == [[1.0, 2.5], [1.0, 2.0], [2.5, 2.5]]
    assert targets.numpy().tolist() == [[0.75, 0, 0.25], [0.5, 0.5, 0], [0, 0.75, 0.25]]


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 3.0])
def test_lambda_is_beta(alpha: float) -> None:
    radius, angle = tf.unstack(tf.random.stateless_uniform((2, 40_000), [1, 2]))
    found = symmetric_beta(radius, angle, alpha).numpy()
    expected = np.random.default_rng(0).beta(alpha, alpha, 40_000)
    assert 0 <= found.min() <= found.max() <= 1
    # Exceeded once in a thousand times; both draws are fixed. Rounded because float32 cannot hold 1 − 1e-9.
    assert distance(found.astype(float).round(5), expected.round(5)) < 0.0136
    assert found.mean() == pytest.approx(0.5, abs=0.01)


def test_lambda_at_the_edges_of_its_random_numbers() -> None:
    radius, angle = np.meshgrid(np.float32([0, 1e-7, 0.5, 1 - 2**-24]), np.float32([0, 0.25, 0.5, 0.75, 1 - 2**-24]))
    found = symmetric_beta(tf.constant(radius), tf.constant(angle), 0.05).numpy()
    assert np.all((found >= 0) & (found <= 1))


def test_mixup_has_one_weight_for_an_image_and_its_target() -> None:
    weights, shares = own_weights(MixSpec(mixup=0.4))
    np.testing.assert_allclose(weights, shares[:, None, None] * np.ones_like(weights), atol=1e-6)
    assert distance(shares, np.random.default_rng(0).beta(0.4, 0.4, BATCH)) < 0.05


def test_cutmix_pastes_a_rectangle_and_targets_have_its_share() -> None:
    weights, shares = own_weights(MixSpec(cutmix=1.0), height=20, width=40)
    assert set(np.unique(weights)) == {0.0, 1.0}
    np.testing.assert_allclose(weights.mean(axis=(1, 2)), shares, atol=1e-6)
    pasted = weights == 0
    rows, columns = pasted.any(axis=2), pasted.any(axis=1)
    assert np.array_equal(pasted, rows[:, :, None] & columns[:, None, :])  # a rectangle, with no gap:
    assert all(np.abs(np.diff(line.astype(int), prepend=0, append=0)).sum() <= 2 for line in (*rows, *columns))
    # Parts outside the image are lost: simulated without pixels.
    rng = np.random.default_rng(1)
    half = np.sqrt(rng.uniform(size=20_000)) / 2
    spans = [np.clip(c + half, 0, 1) - np.clip(c - half, 0, 1) for c in rng.uniform(size=(2, 20_000))]
    assert distance(shares, 1 - spans[0] * spans[1]) < 0.05
    # Equally often in both halves.
    assert rows.mean(axis=0) == pytest.approx(rows.mean(axis=0)[::-1], abs=0.04)


def test_each_image_draws_mixup_or_cutmix() -> None:
    weights, _ = own_weights(MixSpec(mixup=1.0, cutmix=1.0))
    binary = np.all((weights == 0) | (weights == 1), axis=(1, 2))
    assert np.mean(binary) == pytest.approx(0.5, abs=0.03)


def test_erasing_has_the_right_frequency_and_size() -> None:
    images = tf.ones((BATCH, 32, 48, 3))
    targets = tf.one_hot(np.arange(BATCH) % 5, 5)
    erased, same = mix(images, targets, MixSpec(erase=0.25), draw(BATCH, 0, 0, 0))
    assert np.array_equal(same, targets)
    holes = erased.numpy()[..., 0] == 0
    assert set(np.unique(erased)) == {0.0, 1.0}
    hit = holes.any(axis=(1, 2))
    assert hit.mean() == pytest.approx(0.25, abs=0.03)
    areas = holes[hit].mean(axis=(1, 2))
    low, high = mixing.ERASED_AREA
    assert areas.mean() == pytest.approx((low + high) / 2, abs=0.01)
    assert 0.9 * low < areas.min() < areas.max() < 1.1 * high
    heights, widths = holes[hit].any(axis=2).sum(axis=1), holes[hit].any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(heights * widths, holes[hit].sum(axis=(1, 2)))
    aspects = np.log(heights / widths)
    assert aspects.mean() == pytest.approx(0, abs=0.08)
    assert np.abs(aspects).max() < np.log(1 / 0.3) + 0.3  # sides are whole pixels


def test_erasing_comes_first_and_does_not_change_other_draws() -> None:
    images, targets = numbered(64)
    uniform = draw(64, 1, 2, 3)
    erased, _ = mix(images, targets, MixSpec(erase=0.5), uniform)
    expected = mix(erased, targets, MixSpec(mixup=0.2, cutmix=1.0), uniform)
    found = mix(images, targets, MixSpec(mixup=0.2, cutmix=1.0, erase=0.5), uniform)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_is_done_by_default() -> None:
    images, targets = numbered(8)
    found = mix(images, targets, MixSpec(), draw(8, 0, 0, 0))
    assert all(np.array_equal(a, b) for a, b in zip(found, (images, targets), strict=True))


def test_draws_belong_to_seed_step_and_replica() -> None:
    first = draw(16, 1, 2, 3)
    assert 0 <= tf.reduce_min(first) < tf.reduce_max(first) < 1
    traced = tf.function(lambda size, step: draw(size, 1, step, 3))
    np.testing.assert_array_equal(first, traced(tf.constant(16), tf.constant(2, tf.int64)))
    assert len({draw(1, *position).numpy().tobytes() for position in np.ndindex(4, 4, 4)}) == 64


def test_mixing_is_the_same_in_a_graph_and_under_xla() -> None:
    images, targets = numbered(16)
    uniform = draw(16, 1, 2, 3)
    first = mix(images, targets, ALL, uniform)
    for mode in ({}, {"jit_compile": True}):
        traced = tf.function(lambda uniform: mix(images, targets, ALL, uniform), **mode)
        for a, b in zip(first, traced(uniform), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)  # XLA's cosine and power round differently


@pytest.mark.parametrize("xla", [False, True])
def test_smoothing_comes_before_mixing(xla: bool) -> None:
    model = make_model()
    rng = np.random.default_rng(1)
    images = tf.constant(rng.uniform(-1, 1, (6, IMAGE_SIZE, IMAGE_SIZE, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, NUM_CLASSES, 6), tf.int32)
    targets = tf.one_hot(labels, NUM_CLASSES) * 0.9 + 0.1 / NUM_CLASSES
    mixed, mixed_targets = mix(images, targets, ALL, draw(6, 5, 7, 0))
    expected = -np.mean(np.sum(mixed_targets * np.log(model(mixed)), axis=1))
    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build(model.trainable_variables)
    strategy = tf.distribute.get_strategy()
    step = make_training_step(model, optimizer, strategy, 6, label_smoothing=0.1, mixing=ALL, seed=5, xla=xla)
    assert step(images, labels, tf.constant(7, tf.int64)).numpy()[0] == pytest.approx(expected, rel=1e-5)
    assert step(images, labels, tf.constant(8, tf.int64)).numpy()[0] != pytest.approx(expected, rel=1e-3)


def test_a_run_that_starts_within_an_epoch_mixes_like_a_whole_run(tiny_dataset) -> None:
    weights = []
    with open_split(tiny_dataset, "train", 16) as feed:
        for parts in (False, True):
            model = make_model()
            loop = Loop(model, keras.optimizers.SGD(0.1), feed, mixing=ALL, seed=4)
            if parts:
                stop = keras.callbacks.LambdaCallback(
                    on_train_batch_end=lambda *_, m=model, **__: setattr(m, "stop_training", True)
                )
                loop.fit(1, [stop])
                loop = Loop(model, keras.optimizers.SGD(0.1), feed, mixing=ALL, seed=4)
                loop.fit(1, start=Position(step=1))
            else:
                loop.fit(1)
            weights.append(weights_of(model))
    np.testing.assert_array_equal(*weights)


def test_xla_is_refused_on_several_devices() -> None:
    class TwoReplicas:
        num_replicas_in_sync = 2

    with pytest.raises(UserError, match="not with 2; switch xla off"):
        make_training_step(make_model(), keras.optimizers.SGD(0.1), TwoReplicas(), 8, xla=True)


@pytest.mark.parametrize("bad", [{"mixup": -0.1}, {"cutmix": float("nan")}, {"erase": 1.5}])
def test_bad_values_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        MixSpec(**bad)
    with pytest.raises(UserError, match=next(iter(bad))):
        Recipe(**bad)
    assert MixSpec.of(Recipe(mixup=0.1, cutmix=0.2, erase=0.3)) == MixSpec(0.1, 0.2, 0.3)
