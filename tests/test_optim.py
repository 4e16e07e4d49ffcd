"""Lookahead, IterSize, ClipGlobalNorm and `build` against the float64 NumPy implementation of optim_reference.py."""

import json
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kimagenet import optim
from kimagenet.recipe import OPTIMIZERS, Recipe
from tests.helpers import optim_network as network
from tests.helpers import optim_reference as reference
from tests.helpers.optim_reference import SETTINGS, Settings
from tests.helpers.programs import ROOT

TOLERANCE = 1e-6


def run(settings: Settings, mode: str = "graph", order: str = "clip lookahead iter_size", steps: int | None = None):
    """The network after training, its optimizer, and what the reference expects after the same micro-batches."""
    data = reference.micro_batches(reference.batches(), settings.iter_size)[:steps]
    model, optimizer = network.network(), network.optimizer(settings, order)
    network.train(model, optimizer, data, mode)
    return model, optimizer, reference.train(settings, data)


def check(model: keras.Model, optimizer: keras.optimizers.Optimizer, expected: reference.Result) -> None:
    assert reference.distance(model.get_weights(), expected.weights) <= TOLERANCE
    assert int(optimizer.iterations.numpy()) == expected.updates


def start_script(*arguments: str, **environment: str) -> subprocess.Popen:
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"} | environment
    command = [sys.executable, "-m", "tests.helpers.optim_script", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_script(process: subprocess.Popen) -> dict[str, float]:
    try:
        output, errors = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


# --- Lookahead ---


@pytest.mark.parametrize("reset", [False, True], ids=["maintain", "reset"])
@pytest.mark.parametrize("name", SETTINGS)
def test_lookahead_is_the_papers(name: str, reset: bool) -> None:
    check(*run(SETTINGS[name].replace(sync_period=5, reset=reset)))


@pytest.mark.parametrize("mode", ["eager", "jit"])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_lookahead_gives_the_same_in_other_modes(name: str, mode: str) -> None:
    check(*run(SETTINGS[name].replace(sync_period=7, slow_step_size=0.8), mode))


@pytest.mark.parametrize(("share", "path"), [(1 / 3, [2, 1, 2, 1, 0, 1]), (1 / 2, [2, 1, 1.5, 0.5, -0.5, 0])])
def test_lookahead_by_hand(share: float, path: list[float]) -> None:
    """From 3 by steps of 1; every third update goes only `share` of the way. The first path is the one of Optax."""
    weight = keras.Variable([3.0])
    optimizer = optim.Lookahead(keras.optimizers.SGD(1.0), sync_period=3, slow_step_size=share)
    found = []
    for _ in range(7):
        optimizer.apply([tf.constant([1.0])], [weight])
        found.append(float(weight.numpy()[0]))
    assert found == pytest.approx([*path, path[-1] - 1], abs=1e-6)
    optimizer.finalize_variable_values([weight])
    assert weight.numpy() == pytest.approx(
        path[-1], abs=1e-6
    )  # between two synchronizations the slow weights are those of the last one


@pytest.mark.parametrize("name", ["momentum", "adam"])
@pytest.mark.parametrize("sync_period", [1, 5])
def test_slow_step_size_1_switches_lookahead_off(name: str, sync_period: int) -> None:
    model, _, _ = run(SETTINGS[name].replace(sync_period=sync_period, slow_step_size=1.0))
    assert reference.distance(model.get_weights(), run(SETTINGS[name])[2].weights) <= TOLERANCE


@pytest.mark.parametrize("sync_period", [1, 5])
def test_slow_step_size_0_never_moves(sync_period: int) -> None:
    model, _, _ = run(SETTINGS["momentum"].replace(sync_period=sync_period, slow_step_size=0.0))
    assert reference.distance(model.get_weights(), reference.start_weights()) == 0


def test_slow_weights_start_from_weights_that_were_set_after_build() -> None:
    weight = keras.Variable([100.0])
    optimizer = optim.Lookahead(keras.optimizers.SGD(1.0), sync_period=2)
    optimizer.build([weight])
    weight.assign([3.0])
    step = tf.function(lambda: optimizer.apply([tf.constant([1.0])], [weight]))
    step()
    step()
    assert weight.numpy() == [2.0]


# --- IterSize ---


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_iter_size_equals_a_batch_n_times_as_large(name: str, n: int) -> None:
    settings = SETTINGS[name].replace(clip=1.0, iter_size=n)
    data = reference.batches(size=42)
    large, small = network.network(), network.network()
    network.train(large, network.optimizer(settings.replace(iter_size=1)), data)
    optimizer = optim.IterSize(network.optimizer(settings.replace(iter_size=1)), n)
    network.train(small, optimizer, reference.micro_batches(data, n))
    assert reference.distance(small.get_weights(), large.get_weights()) <= TOLERANCE
    check(small, optimizer, reference.train(settings, reference.micro_batches(data, n)))


@pytest.mark.parametrize("mode", ["eager", "jit"])
def test_iter_size_gives_the_same_in_other_modes(mode: str) -> None:
    check(*run(SETTINGS["adamw"].replace(iter_size=3, clip=1.0), mode))


def test_keras_own_clipping_sees_the_mean_gradient() -> None:
    settings = SETTINGS["sgd"].replace(iter_size=3, clip=1.0)
    data = reference.micro_batches(reference.batches(), 3)
    model = network.network()
    network.train(model, optim.IterSize(keras.optimizers.SGD(settings.rate, global_clipnorm=1.0), 3), data)
    assert reference.distance(model.get_weights(), reference.train(settings, data).weights) <= TOLERANCE


def test_schedule_objects_and_ema_count_updates() -> None:
    rates = keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.5, 0.25, 0.125])
    inner = keras.optimizers.SGD(rates, use_ema=True, ema_momentum=0.5)
    optimizer = optim.IterSize(inner, 2)
    weight = keras.Variable([3.0])
    found = []
    for _ in range(12):
        optimizer.apply([tf.constant([1.0])], [weight])
        found.append(float(weight.numpy()[0]))
    assert found == [3.0, 2.5, 2.5, 2.0, 2.0, 1.75, 1.75, 1.5, 1.5, 1.375, 1.375, 1.25]
    average = 2.5
    for value in found[3::2]:
        average = (average + value) / 2
    optimizer.finalize_variable_values([weight])
    assert float(weight.numpy()[0]) == average


def test_partial_sums_are_carried_over_epochs_and_counted() -> None:
    settings = SETTINGS["momentum"].replace(iter_size=3)
    data = reference.batches(steps=7)
    model, optimizer = network.network(), network.optimizer(settings)
    network.train(model, optimizer, data)
    assert optimizer.pending == 1
    network.train(model, optimizer, data)
    assert optimizer.pending == 2
    check(model, optimizer, reference.train(settings, data + data))
    network.train(model, optimizer, data[:1])
    assert optimizer.pending == 0
    check(model, optimizer, reference.train(settings, data + data + data[:1]))


def test_missing_and_sparse_gradients() -> None:
    table, unused = keras.Variable(np.zeros((4, 1), np.float32)), keras.Variable([7.0])
    optimizer = optim.IterSize(keras.optimizers.SGD(1.0), 2)
    for row in (1, 1, 3, 2):
        sparse = tf.IndexedSlices(tf.constant([[1.0]]), tf.constant([row]), dense_shape=tf.constant([4, 1]))
        with pytest.warns(UserWarning, match="Gradients do not exist") if optimizer.pending else nullcontext():
            optimizer.apply([sparse, None], [table, unused])
    assert table.numpy().ravel().tolist() == [0.0, -1.0, -0.5, -0.5]
    assert unused.numpy() == [7.0]


# --- together ---

TOGETHER = {"sync_period": 5, "iter_size": 3, "clip": 1.0}


@pytest.mark.parametrize("order", ["clip lookahead iter_size", "clip iter_size lookahead"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_lookahead_and_iter_size_commute_for_lookahead_counts_updates(name: str, order: str) -> None:
    check(*run(SETTINGS[name].replace(**TOGETHER), order=order))


@pytest.mark.parametrize("mode", ["eager", "jit"])
@pytest.mark.parametrize("order", ["clip lookahead iter_size", "clip iter_size lookahead"])
def test_both_orders_in_other_modes(order: str, mode: str) -> None:
    check(*run(SETTINGS["momentum"].replace(**TOGETHER), mode, order))


@pytest.mark.parametrize("mode", ["graph", "jit"])
@pytest.mark.parametrize("order", ["clip lookahead iter_size loss_scale", "clip loss_scale lookahead iter_size"])
def test_loss_scaling_outside_and_inside(order: str, mode: str) -> None:
    check(*run(SETTINGS["momentum"].replace(**TOGETHER), mode, order))


@pytest.mark.parametrize(
    ("order", "lost"), [("lookahead iter_size loss_scale", 1), ("loss_scale lookahead iter_size", 2)]
)
def test_a_skipped_step_counts_for_nothing(order: str, lost: int) -> None:
    """Micro-batch 4 overflows: outside, loss scaling drops it alone; inside, it drops the update, of 4 and 5."""
    settings = SETTINGS["sgd"].replace(sync_period=3, iter_size=2)
    data = reference.batches(steps=20)
    poisoned = [(x * np.inf, y) if i == 4 else (x, y) for i, (x, y) in enumerate(data)]
    model, optimizer = network.network(), network.optimizer(settings, order)
    network.train(model, optimizer, poisoned)
    check(model, optimizer, reference.train(settings, data[:4] + data[4 + lost :]))


def test_fit_ends_with_the_slow_weights_between_two_synchronizations() -> None:
    settings = SETTINGS["momentum"].replace(**TOGETHER)
    data = reference.micro_batches(reference.batches(), 3)[:38]
    model = network.network()
    model.compile(
        network.optimizer(settings), loss=lambda y, p: tf.reduce_sum((p - y) ** 2, -1) / 2, steps_per_execution=2
    )
    x, y = (np.concatenate(part) for part in zip(*data, strict=True))
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    expected = reference.train(settings, data)
    assert reference.distance(model.get_weights(), expected.slow) <= TOLERANCE
    assert reference.distance(model.get_weights(), expected.weights) > 1e-3


@pytest.mark.parametrize("order", ["lookahead iter_size", "iter_size lookahead loss_scale"])
def test_evaluation_weights_are_put_in_and_taken_out(order: str) -> None:
    settings = SETTINGS["momentum"].replace(sync_period=5, iter_size=3, ema=0.8)
    model, optimizer, expected = run(settings, order=order, steps=38)
    fast = model.get_weights()
    with optim.evaluation_weights(optimizer, model.trainable_variables):
        assert reference.distance(model.get_weights(), expected.slow) <= TOLERANCE
    assert reference.distance(model.get_weights(), fast) == 0
    with optim.evaluation_weights(optimizer, model.trainable_variables, ema=True):
        average = model.get_weights()
    plain = run(settings.replace(sync_period=0, ema=0.0), steps=38)[1]
    with pytest.raises(ValueError, match="moving average"), optim.evaluation_weights(plain, [], ema=True):
        pass
    # The reference averages the weights before Lookahead moves them, as Keras does inside of it.
    assert reference.distance(average, expected.average) <= TOLERANCE


def test_one_copy_of_the_weights_each() -> None:
    model = network.network()
    weights = sum(v.numpy().nbytes for v in model.trainable_variables)
    for wrap in (lambda o: optim.Lookahead(o), lambda o: optim.IterSize(o, 4)):
        optimizer = wrap(keras.optimizers.SGD())
        optimizer.build(model.trainable_variables)
        own = sum(v.numpy().nbytes for v in optimizer.variables if v.shape.rank > 0)
        assert own == weights


# --- other processes ---


def test_mirrored_strategy_on_two_logical_cpus() -> None:
    found = finish_script(start_script("mirrored"))
    keras_own = found.pop("Keras' own clipping")
    assert keras_own > 1e-2, "Keras clips right by now: ClipGlobalNorm is not needed"
    assert len(found) == 12
    assert {case: value for case, value in found.items() if not value <= TOLERANCE} == {}


def test_two_workers() -> None:
    with socket.socket() as one, socket.socket() as other:
        for s in (one, other):
            s.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in (one, other)]
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(start_script("worker", TF_CONFIG=json.dumps(task)))
    try:
        results = [finish_script(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert results[0] == results[1]
    assert len(results[0]) == 2
    assert max(results[0].values()) <= TOLERANCE


def test_a_keras_file_saved_between_two_synchronizations_continues_in_a_new_process(tmp_path: Path) -> None:
    settings = SETTINGS["adam"].replace(**TOGETHER)
    data = reference.micro_batches(reference.batches(), 3)
    model = network.network()
    model.compile(network.optimizer(settings), loss="mse")
    for i, (x, y) in enumerate(data):
        if i == 38:  # 12 updates, two of the third cycle, and two micro-batches
            assert model.optimizer.pending == 2
            model.save(tmp_path / "middle.keras")
        model.train_on_batch(x, y)
    fast = model.get_weights()
    model.optimizer.finalize_variable_values(model.trainable_variables)
    finish_script(start_script("resume", str(tmp_path / "middle.keras"), "38", str(tmp_path / "end.npz")))
    with np.load(tmp_path / "end.npz") as resumed:
        assert reference.distance([resumed[f"arr_{i}"] for i in range(8)], [*fast, *model.get_weights()]) <= 1e-7


def test_a_tensorflow_checkpoint_holds_everything(tmp_path: Path) -> None:
    settings = SETTINGS["adam"].replace(**TOGETHER)
    data = reference.micro_batches(reference.batches(), 3)
    model, optimizer, _ = run(settings, steps=38)
    path = tf.train.Checkpoint(model=model, optimizer=optimizer).save(tmp_path / "middle")
    model, optimizer = network.network(), network.optimizer(settings)
    optimizer.build(model.trainable_variables)
    tf.train.Checkpoint(model=model, optimizer=optimizer).restore(path).assert_existing_objects_matched()
    network.train(model, optimizer, data[38:])
    check(model, optimizer, reference.train(settings, data))


# --- construction ---


def test_config_round_trip() -> None:
    inner = optim.ClipGlobalNorm(keras.optimizers.Adam(0.25), 1.5)
    optimizer = optim.IterSize(optim.Lookahead(inner, 7, 0.8, inner_state="reset", name="ahead"), 4)
    config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    again = keras.optimizers.deserialize(config)
    assert keras.optimizers.serialize(again) == config
    assert again.iter_size == 4
    lookahead = again.inner_optimizer
    assert (lookahead.sync_period, lookahead.slow_step_size, lookahead.inner_state) == (7, 0.8, "reset")
    assert lookahead.inner_optimizer.clip_norm == 1.5
    again.learning_rate = 0.125
    assert float(lookahead.inner_optimizer.inner_optimizer.learning_rate.numpy()) == 0.125


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.Lookahead(keras.optimizers.SGD(), sync_period=0),
        lambda: optim.Lookahead(keras.optimizers.SGD(), sync_period=2.5),
        lambda: optim.Lookahead(keras.optimizers.SGD(), slow_step_size=1.1),
        lambda: optim.Lookahead(keras.optimizers.SGD(), inner_state="interpolate"),
        lambda: optim.Lookahead(keras.optimizers.Nadam(), inner_state="reset"),
        lambda: optim.Lookahead(keras.optimizers.SGD(use_ema=True), inner_state="reset"),
        lambda: optim.IterSize(keras.optimizers.SGD(), 0),
        lambda: optim.IterSize(keras.optimizers.SGD(), 1.5),
        lambda: optim.ClipGlobalNorm(keras.optimizers.SGD(), 0),
        lambda: optim.ClipGlobalNorm(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), 1.0),
        lambda: optim.Lookahead(keras.optimizers.SGD()).apply([tf.constant(1.0)]),
        lambda: optim.IterSize(keras.optimizers.SGD(), 2).stateless_apply([], [], []),
    ],
)
def test_bad_arguments_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"must|works with|would|is \"|needs"):
        make()


def test_unknown_variables_are_refused() -> None:
    optimizer = optim.IterSize(keras.optimizers.SGD(), 2)
    optimizer.build([keras.Variable([1.0])])
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([tf.constant([1.0])], [keras.Variable([1.0])])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_a_recipe_trains_in_all_wrappers(name: str) -> None:
    recipe = Recipe(optimizer=name, initial_lr=0.01, iter_size=2, use_lookahead=True, clip_global_norm=1.0, ema=0.9)
    optimizer = optim.build(recipe)
    assert isinstance(optimizer, optim.IterSize)
    assert isinstance(optimizer.inner_optimizer, optim.Lookahead)
    assert isinstance(optimizer.inner_optimizer.inner_optimizer, optim.ClipGlobalNorm)
    model = network.network()
    data = reference.batches(steps=20)
    x, y = (tf.constant(part, tf.float32) for part in data[0])
    before = float(network.loss(model, x, y))
    network.train(model, optimizer, data[:1] * 20)
    assert float(network.loss(model, x, y)) < before
    assert int(optimizer.iterations.numpy()) == 10


def test_a_plain_recipe_gives_the_bare_optimizer() -> None:
    optimizer = optim.build(Recipe(optimizer="sgd", momentum=0.8, nesterov=True, initial_lr=0.5))
    assert type(optimizer) is keras.optimizers.SGD
    assert (optimizer.momentum, optimizer.nesterov, float(optimizer.learning_rate.numpy())) == (0.8, True, 0.5)
    adam, rmsprop = (optim.build(Recipe(optimizer=name)) for name in ("adam", "rmsprop"))
    assert (adam.epsilon, rmsprop.epsilon, rmsprop.rho, adam.weight_decay) == (0.1, 0.1, 0.9, None)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decoupled_decay_leaves_biases_and_normalization_alone(name: str) -> None:
    recipe = Recipe(optimizer=name, weight_decay=0.0, decoupled_weight_decay=0.1, initial_lr=0.5, use_lookahead=True)
    optimizer = optim.build(recipe.replace(sync_period=1000))
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(2, name="beta", bias_initializer="ones"),
            keras.layers.BatchNormalization(beta_initializer="ones"),
        ]
    )
    before = {v.path: v.numpy() for v in model.trainable_variables}
    optimizer.apply([tf.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    for v in model.trainable_variables:
        np.testing.assert_allclose(v.numpy(), before[v.path] * (0.95 if v.name == "kernel" else 1.0), rtol=1e-6)
