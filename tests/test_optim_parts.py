"""Details of the optimizers: the numbers of a recipe, what wrappers pass on, and what they refuse."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kimagenet import optim
from kimagenet.optim.wrapper import chain
from kimagenet.recipe import OPTIMIZERS, Recipe

WRAPS = {
    "lookahead": lambda inner: optim.Lookahead(inner, sync_period=100),
    "iter_size": lambda inner: optim.IterSize(inner, 1),
    "clip": lambda inner: optim.ClipGlobalNorm(inner, 100.0),
}
WRAPPERS = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)


def one() -> tf.Tensor:
    return tf.constant([1.0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_has_the_numbers_of_the_recipe(name: str) -> None:
    wrappers = {
        "iter_size": 4,
        "use_lookahead": True,
        "sync_period": 7,
        "slow_step_size": 0.75,
        "clip_global_norm": 1.5,
    }
    recipe = Recipe(optimizer=name, initial_lr=0.25, epsilon=0.01, ema=0.75, weight_decay=0.0, **wrappers)
    iter_size, lookahead, clip, inner = chain(optim.build(recipe.replace(decoupled_weight_decay=0.125)))
    assert (iter_size.iter_size, lookahead.sync_period, lookahead.slow_step_size) == (4, 7, 0.75)
    assert (lookahead.inner_state, clip.clip_norm) == ("maintain", 1.5)
    assert float(inner.learning_rate.numpy()) == 0.25
    assert (inner.use_ema, inner.ema_momentum, inner.weight_decay) == (True, 0.75, 0.125)
    assert getattr(inner, "epsilon", 0.01) == 0.01


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plain_recipe_gives_a_plain_optimizer(name: str) -> None:
    (optimizer,) = chain(optim.build(Recipe(optimizer=name, iter_size=1)))
    assert not optimizer.use_ema
    assert not optimizer.weight_decay


@WRAPPERS
def test_wrappers_pass_on_what_is_not_decayed(wrap) -> None:
    for by in ("var_list", "var_names"):
        plain, spared = (keras.Variable([1.0], name=name) for name in ("plain", "spared"))
        optimizer = wrap(keras.optimizers.SGD(0.5, weight_decay=0.5))
        optimizer.exclude_from_weight_decay(**{by: [spared if by == "var_list" else "spared"]})
        optimizer.apply([0 * one()] * 2, [plain, spared])
        assert (float(plain.numpy()[0]), float(spared.numpy()[0])) == (0.75, 1.0)


@WRAPPERS
def test_a_built_optimizer_needs_no_variables(wrap) -> None:
    weight = keras.Variable([3.0])
    optimizer = wrap(keras.optimizers.SGD(0.5))
    optimizer.build(iter([weight]))
    variables = list(map(id, optimizer.variables))
    optimizer.build([weight])
    assert list(map(id, optimizer.variables)) == variables
    optimizer.apply([one()])
    assert float(weight.numpy()[0]) == 2.5
    optimizer.apply(iter([one()]), iter([weight]))
    assert float(weight.numpy()[0]) == 2.0
    assert int(optimizer.iterations.numpy()) == 2


@WRAPPERS
def test_apply_outside_of_a_replica_is_refused(wrap) -> None:
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        weight = keras.Variable([3.0])
        with pytest.raises(ValueError, match=r"strategy\.run"):
            wrap(keras.optimizers.SGD()).apply([one()], [weight])


@WRAPPERS
def test_the_learning_rate_is_the_inner_optimizers(wrap) -> None:
    inner = keras.optimizers.SGD(0.25)
    optimizer = wrap(inner)
    assert float(optimizer.learning_rate.numpy()) == 0.25
    optimizer.learning_rate = 0.125
    assert float(inner.learning_rate.numpy()) == 0.125


def test_the_average_is_evaluated_only_if_there_is_one() -> None:
    weight = keras.Variable([3.0])
    averaging = optim.Lookahead(keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5))
    for _ in range(2):
        averaging.apply([one()], [weight])
    with optim.evaluation_weights(averaging, [weight], ema=True):
        assert float(weight.numpy()[0]) == 1.5
    assert float(weight.numpy()[0]) == 1.0
    plain = optim.Lookahead(keras.optimizers.SGD(1.0))
    with pytest.raises(ValueError, match="moving average"), optim.evaluation_weights(plain, [], ema=True):
        pass


@WRAPPERS
def test_names_are_kept(wrap) -> None:
    optimizer = wrap(keras.optimizers.SGD())
    assert (
        type(optimizer)(**optimizer.get_config() | {"inner_optimizer": keras.optimizers.SGD(), "name": "x"}).name == "x"
    )


def test_clipping_scales_only_what_is_too_long() -> None:
    found = []
    for gradient in ([0.3, 0.4], [3.0, 4.0], [0.0, 0.0]):
        weights = [keras.Variable([0.0]), keras.Variable([0.0]), keras.Variable([7.0])]
        optimizer = optim.ClipGlobalNorm(keras.optimizers.SGD(1.0), 1.0)
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            optimizer.apply([*(g * one() for g in gradient), None], weights)
        found.append([float(w.numpy()[0]) for w in weights])
    np.testing.assert_allclose(found, [[-0.3, -0.4, 7.0], [-0.6, -0.8, 7.0], [0.0, 0.0, 7.0]], rtol=1e-6)


def test_before_the_first_update_the_weights_are_evaluated_as_they_are() -> None:
    weight = keras.Variable([100.0])
    optimizer = optim.Lookahead(keras.optimizers.SGD(1.0))
    optimizer.build([weight])
    weight.assign([3.0])
    with optim.evaluation_weights(optimizer, [weight]):
        assert float(weight.numpy()[0]) == 3.0
    optimizer.finalize_variable_values([weight])
    assert float(weight.numpy()[0]) == 3.0


def test_after_an_error_in_an_evaluation_the_training_weights_are_back() -> None:
    weight = keras.Variable([3.0])
    optimizer = optim.Lookahead(keras.optimizers.SGD(1.0))
    optimizer.apply([one()], [weight])
    found = []

    def fail() -> None:
        with optim.evaluation_weights(optimizer, [weight]):
            found.append(float(weight.numpy()[0]))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert found == [3.0]
    assert float(weight.numpy()[0]) == 2.0


def test_the_defaults_of_lookahead_are_the_papers() -> None:
    lookahead = optim.Lookahead(keras.optimizers.SGD())
    assert (lookahead.sync_period, lookahead.slow_step_size, lookahead.inner_state) == (5, 0.5, "maintain")


def test_a_reset_keeps_the_rate_and_makes_the_rest_new() -> None:
    weight = keras.Variable([3.0])
    optimizer = optim.Lookahead(keras.optimizers.SGD(0.5, momentum=0.5), 2, 1.0, inner_state="reset")
    found = []
    for _ in range(4):
        optimizer.apply([one()], [weight])
        found.append(float(weight.numpy()[0]))
    assert found == [2.5, 1.75, 1.25, 0.5]
    assert int(optimizer.iterations.numpy()) == 4
    assert int(optimizer.inner_optimizer.iterations.numpy()) == 0
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    with pytest.raises(ValueError, match="schedule object"):
        optim.Lookahead(keras.optimizers.SGD(schedule), inner_state="reset")


def test_the_ends_of_ranges_are_allowed() -> None:
    for share in (0, 1):
        optim.Lookahead(keras.optimizers.SGD(), 1, share)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="slow_step_size"):
            optim.Lookahead(keras.optimizers.SGD(), 1, share)
    optim.ClipGlobalNorm(keras.optimizers.SGD(), 0.5)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Lamb", "Lion", "RMSprop", "SGD"])
def test_optimizers_whose_state_starts_from_zero_can_be_reset(name: str) -> None:
    inner = getattr(keras.optimizers, name)(0.1)
    weights, gradient = [keras.Variable([1.0, 2.0])], [tf.constant([0.5, -0.5])]
    lookahead = optim.Lookahead(inner, sync_period=1, inner_state="reset")
    lookahead.apply(gradient, weights)
    assert all(not np.any(v.numpy()) for v in inner.variables if v is not inner.learning_rate)
