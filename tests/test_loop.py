"""The loop: loss, step, exact evaluation, clock and callbacks; on one device and on two."""

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kimagenet.models import l2_kernels
from kimagenet.optim import Lookahead
from kimagenet.schedule import Schedule
from kimagenet.training.feed import Feed, open_feed
from kimagenet.training.loop import Loop, Stopped, evaluate
from kimagenet.training.results import Evaluation, Totals
from kimagenet.training.steps import make_evaluation_step, make_training_step
from kimagenet.training.strategy import choose_strategy
from pipelines import AugmentSpec, BatchSpec, ShardSet, UserError
from tests.helpers.data import NUM_CLASSES, VALIDATION_RECORDS
from tests.helpers.programs import run_program

IMAGE_SIZE = 16


def make_model(seed: int = 0, with_norm: bool = False) -> keras.Model:
    """A small model, with the same weights for the same seed."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3))
    x = keras.layers.Conv2D(8, 3, 2, activation="relu")(x)
    if with_norm:
        x = keras.layers.BatchNormalization(momentum=0.5)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(NUM_CLASSES, activation="softmax")(x))


def open_split(directory: Path, split: str, batch_size: int, dtype: str = "float32") -> Feed:
    augment = AugmentSpec() if split == "train" else AugmentSpec.evaluation()
    batch = BatchSpec(batch_size, IMAGE_SIZE, dtype)
    return open_feed(choose_strategy(), "tfdata", ShardSet.open(directory, split), batch, augment, workers=1)


def weights_of(model: keras.Model) -> np.ndarray:
    return np.concatenate([weight.ravel() for weight in model.get_weights()])


def test_loss_is_smoothed_cross_entropy_plus_l2() -> None:
    model = make_model()
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (6, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    labels = rng.integers(0, NUM_CLASSES, 6).astype(np.int32)
    probabilities = np.asarray(model(images), np.float64)
    targets = np.eye(NUM_CLASSES)[labels] * 0.9 + 0.1 / NUM_CLASSES
    penalty = sum(np.sum(np.asarray(kernel, np.float64) ** 2) for kernel in l2_kernels(model))
    expected = np.mean(-np.sum(targets * np.log(probabilities), axis=1)) + 0.01 * penalty
    hits = np.mean(np.argmax(probabilities, axis=1) == labels)

    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build(model.trainable_variables)
    strategy = tf.distribute.get_strategy()
    step = make_training_step(model, optimizer, strategy, 6, weight_decay=0.01, label_smoothing=0.1)

    loss, top1, _ = step(tf.constant(images), tf.constant(labels)).numpy()
    assert loss == pytest.approx(expected, rel=1e-6)
    assert top1 == pytest.approx(hits)


def test_confident_mistakes_have_a_finite_loss_and_a_gradient() -> None:
    inputs = keras.Input((2, 2, 3))
    logits = keras.layers.Dense(3, kernel_initializer="zeros", bias_initializer=lambda *_, **__: [0.0, 200.0, 0.0])
    model = keras.Model(inputs, keras.layers.Softmax()(logits(keras.layers.Flatten()(inputs))))
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(model.trainable_variables)
    step = make_training_step(model, optimizer, tf.distribute.get_strategy(), 1)

    loss, *_ = step(tf.zeros((1, 2, 2, 3)), tf.constant([0])).numpy()
    assert loss == pytest.approx(200)
    assert model.layers[-2].bias.numpy().tolist() == [1.0, 199.0, 0.0]


@pytest.mark.parametrize("with_norm", [False, True])
def test_equals_keras_fit(tiny_dataset: Path, with_norm: bool) -> None:
    ours, theirs = (make_model(with_norm=with_norm) for _ in range(2))
    theirs.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    with open_split(tiny_dataset, "train", 16) as feed:
        history = Loop(ours, keras.optimizers.SGD(0.1, momentum=0.9), feed).fit(2)
        for epoch in range(2):
            expected = theirs.fit(feed.loaders[0].epoch(epoch), verbose=0)
            assert history.history["loss"][epoch] == pytest.approx(expected.history["loss"][0], abs=1e-6)
            assert history.history["top1"][epoch] == pytest.approx(expected.history["accuracy"][0], abs=1e-6)
    np.testing.assert_allclose(weights_of(ours), weights_of(theirs), rtol=0, atol=1e-6)


def test_averaged_and_trained_weights_are_both_evaluated(tiny_dataset: Path) -> None:
    model = make_model()
    with open_split(tiny_dataset, "train", 16) as feed, open_split(tiny_dataset, "validation", 37) as validation:
        optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9)
        loop = Loop(model, optimizer, feed, validation, ema=True)
        step = make_evaluation_step(model, feed.strategy)
        logged: dict[str, float] = {}

        def compare(epoch: int, logs: dict[str, float]) -> None:
            logged.update(logs)
            assert evaluate(step, validation).loss == pytest.approx(logs["val_raw_loss"], rel=1e-6)
            with loop.evaluation_weights():
                result = evaluate(step, validation)
            assert (result.loss, result.top1) == pytest.approx((logs["val_loss"], logs["val_top1"]), rel=1e-6)

        loop.fit(2, [keras.callbacks.LambdaCallback(on_epoch_end=compare)])
        assert abs(logged["val_raw_loss"] - logged["val_loss"]) > 1e-3
        assert evaluate(step, validation).loss == pytest.approx(logged["val_loss"], rel=1e-6)


def test_a_start_within_an_epoch_equals_a_whole_run(tiny_dataset: Path) -> None:
    whole, parts = make_model(), make_model()
    with open_split(tiny_dataset, "train", 16) as feed:
        Loop(whole, keras.optimizers.SGD(0.1), feed).fit(2)
        loop = Loop(parts, keras.optimizers.SGD(0.1), feed)
        stop = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: setattr(parts, "stop_training", True))
        loop.fit(1, [stop])
        assert loop.global_step == 1
        loop.fit(2, start=loop.position)
    np.testing.assert_array_equal(weights_of(whole), weights_of(parts))


@pytest.mark.parametrize("batch_size", [1, 8, 37, 64])
def test_evaluation_counts_every_record_once(tiny_dataset: Path, batch_size: int) -> None:
    model = make_model(3)
    with open_split(tiny_dataset, "validation", batch_size) as feed:
        result = evaluate(make_evaluation_step(model, feed.strategy), feed)
        batches = [[part.numpy() for part in batch] for batch in feed.loaders[0].epoch(0)]
    images, labels, weights = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    images, labels = images[weights == 1], labels[weights == 1]
    probabilities = np.asarray(model(images), np.float64)
    ranked = np.argsort(-probabilities, axis=1, kind="stable")
    assert result.records == len(labels) == VALIDATION_RECORDS
    assert result.top1_correct == np.sum(ranked[:, 0] == labels)
    assert result.top5_correct == np.sum(ranked[:, :5] == labels[:, None])
    assert result.loss == pytest.approx(-np.mean(np.log(probabilities[np.arange(len(labels)), labels])), rel=1e-6)


def test_ties_and_nan_are_not_hits() -> None:
    inputs = keras.Input((NUM_CLASSES,))
    step = make_evaluation_step(keras.Model(inputs, keras.layers.Identity()(inputs)), tf.distribute.get_strategy())
    labels = tf.range(NUM_CLASSES)
    flat = tf.fill((NUM_CLASSES, NUM_CLASSES), 0.1)
    assert step(flat, labels, tf.ones(NUM_CLASSES)).numpy()[1:].tolist() == [1, 5, 10]
    assert step(flat * np.nan, labels, tf.ones(NUM_CLASSES)).numpy()[1:].tolist() == [0, 0, 10]


def test_uint8_batches_are_scaled_in_the_step(tiny_dataset: Path) -> None:
    model = make_model()
    losses = []
    for dtype in ("float32", "uint8", "float16"):
        with open_split(tiny_dataset, "validation", 37, dtype) as feed:
            losses.append(evaluate(make_evaluation_step(model, feed.strategy), feed).loss)
    # Rounding to integers and to float16 changes the probabilities by about 1e-4.
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)


class Witness(keras.callbacks.Callback):
    """Records every call with its logs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def on_train_begin(self, logs=None):
        self.calls.append(("train_begin",))

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("epoch_begin", epoch))

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(("batch", batch, logs["loss"]))

    def on_test_end(self, logs=None):
        self.calls.append(("test_end",))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("epoch_end", epoch, logs))

    def on_train_end(self, logs=None):
        self.calls.append(("train_end",))


def test_calls_callbacks_like_keras(tiny_dataset: Path) -> None:
    witness = Witness()
    model = make_model()
    with open_split(tiny_dataset, "train", 25) as training, open_split(tiny_dataset, "validation", 10) as validation:
        loop = Loop(model, keras.optimizers.SGD(0.1), training, validation)
        history = loop.fit(2, [witness])
    epoch = ["epoch_begin", *["batch"] * 4, "test_end", "epoch_end"]
    assert [call[0] for call in witness.calls] == ["train_begin", *epoch, *epoch, "train_end"]
    logs = witness.calls[7][2]
    assert set(logs) == {"loss", "top1", "learning_rate", "val_loss", "val_top1", "val_top5"}
    assert logs["loss"] == witness.calls[5][2]
    assert history.history["val_top1"][0] == logs["val_top1"]
    assert loop.global_step == loop.totals.steps == 8


def test_a_stop_requested_after_a_validation_takes_effect_before_the_next_epoch(tiny_dataset: Path) -> None:
    with open_split(tiny_dataset, "train", 25) as feed, open_split(tiny_dataset, "validation", 7) as validation:
        loop = Loop(make_model(), keras.optimizers.SGD(0.1), feed, validation)
        asks = keras.callbacks.LambdaCallback()
        asks.on_test_end = lambda logs: loop.request_stop()
        with pytest.raises(Stopped):
            loop.fit(2, [asks])
        assert (loop.position.epoch, loop.position.step) == (1, 0)


def test_early_stopping_of_keras_works(tiny_dataset: Path) -> None:
    stopping = keras.callbacks.EarlyStopping(monitor="loss", min_delta=100.0, patience=1)
    with open_split(tiny_dataset, "train", 25) as feed:
        history = Loop(make_model(), keras.optimizers.SGD(0.1), feed).fit(9, [stopping])
    assert len(history.epoch) == 2


def test_schedule_sets_the_rate_of_every_step(tiny_dataset: Path) -> None:
    rates = []
    model = make_model()
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_, **__: rates.append(float(model.optimizer.learning_rate))
    )
    with open_split(tiny_dataset, "train", 50) as feed:
        schedule = Schedule("exp", initial_lr=1.0, final_lr=0.01, epochs=3, warmup_epochs=1)
        Loop(model, keras.optimizers.SGD(0.5), feed, schedule=schedule).fit(3, [note])
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_validates_with_slow_weights_and_ends_with_them(tiny_dataset: Path) -> None:
    model = make_model()
    seen = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_, **__: seen.append(weights_of(model)))
    with open_split(tiny_dataset, "train", 25) as training, open_split(tiny_dataset, "validation", 37) as validation:
        optimizer = Lookahead(keras.optimizers.SGD(0.5), sync_period=3)
        history = Loop(model, optimizer, training, validation).fit(1, [note])
        result = evaluate(make_evaluation_step(model, validation.strategy), validation)
    assert result.loss == pytest.approx(history.history["val_loss"][0], abs=1e-12)
    assert np.abs(seen[0] - weights_of(model)).max() > 1e-4  # four steps: one after the synchronization


def test_totals_do_not_time_the_warm_up(tiny_dataset: Path) -> None:
    with open_split(tiny_dataset, "train", 20) as feed:
        loop = Loop(make_model(), keras.optimizers.SGD(0.1), feed)
        loop.fit(1)
        first = loop.totals
        loop.fit(1)
    assert (first.steps, first.images) == (5, 2 * 20)
    second = loop.totals - first
    assert (second.steps, second.images) == (5, 5 * 20)
    assert 0 < second.speed()["data_wait"] < 1
    assert Totals().means() == Totals().speed() == {}


def test_mixed_precision_scales_the_loss(tiny_dataset: Path) -> None:
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = make_model()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    plain = make_model()
    with open_split(tiny_dataset, "train", 25) as feed:
        loop = Loop(model, keras.optimizers.SGD(0.1), feed)
        history = loop.fit(2)
        expected = Loop(plain, keras.optimizers.SGD(0.1), feed).fit(2)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert history.history["loss"] == pytest.approx(expected.history["loss"], rel=1e-2)


def test_evaluation_shares() -> None:
    result = Evaluation(records=8, top1_correct=2, top5_correct=6, loss=1.0)
    assert (result.top1, result.top5) == (0.25, 0.75)


def test_a_record_that_cannot_be_read_is_named(tiny_dataset: Path, tmp_path: Path) -> None:
    dataset = shutil.copytree(tiny_dataset, tmp_path / "data")
    with open_split(dataset, "train", 25) as feed:
        for path in dataset.glob("train-0*-of-00003"):
            path.write_bytes(bytes(path.stat().st_size))
        with pytest.raises(UserError, match=r"train-0000[012]-of-00003: the record at byte \d+ [^\n]+$"):
            Loop(make_model(), keras.optimizers.SGD(0.1), feed).fit(1)


def test_statistics_of_batch_norm_on_two_devices() -> None:
    """Statistics of the whole batch if synchronized; otherwise the mean over the devices."""
    result = run_program("batch_norm_statistics")
    assert result.returncode == 0, result.stderr
    assert "equal" in result.stdout


def test_two_devices_equal_one(tiny_dataset: Path) -> None:
    result = run_program("two_devices", tiny_dataset)
    assert result.returncode == 0, result.stderr
    assert "equal" in result.stdout


class TwoReplicas:
    num_replicas_in_sync = 2


def test_a_feed_describes_its_loader(tiny_dataset: Path) -> None:
    shards, batch = ShardSet.open(tiny_dataset, "train"), BatchSpec(16, IMAGE_SIZE)
    for strategy, replicas, words in (
        (tf.distribute.get_strategy(), 1, "tfdata on the cpu"),
        (TwoReplicas(), 2, "2 × tfdata on the cpu"),
    ):
        with open_feed(strategy, "tfdata", shards, batch, AugmentSpec()) as feed:
            assert (feed.loader, feed.device, feed.replicas) == ("tfdata", "cpu", replicas)
            assert feed.description == words


def test_a_batch_must_divide_among_the_devices(tiny_dataset: Path) -> None:
    shards = ShardSet.open(tiny_dataset, "train")
    with pytest.raises(UserError, match="cannot be divided among 2 devices; choose a multiple of 2"):
        open_feed(TwoReplicas(), "tfdata", shards, BatchSpec(15, IMAGE_SIZE), AugmentSpec())
