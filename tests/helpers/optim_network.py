"""The network of optim_reference.py in Keras, and loops that train it: plain, and under a strategy."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from kimagenet import optim
from tests.helpers import optim_reference as reference

INNER = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam, "rmsprop": keras.optimizers.RMSprop}


def network() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((reference.INPUTS,)),
            keras.layers.Dense(reference.HIDDEN, activation="tanh"),
            keras.layers.Dense(reference.OUTPUTS),
        ]
    )
    model.set_weights(reference.start_weights())
    return model


def inner(s: reference.Settings) -> keras.optimizers.Optimizer:
    """The Keras optimizer of the settings, without the wrappers."""
    options: dict = {"learning_rate": s.rate, "weight_decay": s.decay or None}
    options |= {"momentum": s.momentum, "nesterov": s.nesterov} if s.name == "sgd" else {"epsilon": s.epsilon}
    if s.ema:
        options |= {"use_ema": True, "ema_momentum": s.ema}
    return INNER[s.name](**options)


def optimizer(s: reference.Settings, order: str = "clip lookahead iter_size") -> keras.optimizers.Optimizer:
    """Wrapped as the settings say; `order` names the wrappers from inside out, "loss_scale" among them."""
    found = inner(s)
    for wrapper in order.split():
        if wrapper == "clip" and s.clip:
            found = optim.ClipGlobalNorm(found, s.clip)
        if wrapper == "lookahead" and s.sync_period:
            state = "reset" if s.reset else "maintain"
            found = optim.Lookahead(found, s.sync_period, s.slow_step_size, inner_state=state)
        if wrapper == "iter_size" and s.iter_size > 1:
            found = optim.IterSize(found, s.iter_size)
        if wrapper == "loss_scale":
            found = keras.optimizers.LossScaleOptimizer(found, initial_scale=2.0**7)
    return found


def loss(model: keras.Model, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.reduce_sum((model(x, training=True) - y) ** 2, 1)) / 2


def tensors(data: list[reference.Batch]) -> list[tuple[tf.Tensor, tf.Tensor]]:
    return [(tf.constant(x, tf.float32), tf.constant(y, tf.float32)) for x, y in data]


def train(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, data: list[reference.Batch], mode: str = "graph"
) -> list[np.ndarray]:
    """The weights after your own loop; mode is eager, graph or jit."""
    optimizer.build(model.trainable_variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            scaled = optimizer.scale_loss(loss(model, x, y))
        optimizer.apply(tape.gradient(scaled, model.trainable_variables), model.trainable_variables)

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "jit")
    for x, y in tensors(data):
        step(x, y)
    return model.get_weights()


def train_distributed(
    strategy: tf.distribute.Strategy,
    make_optimizer: Callable[[], keras.optimizers.Optimizer],
    data: list[reference.Batch],
    mode: str = "graph",
    model: keras.Model | None = None,
    optimizer: keras.optimizers.Optimizer | None = None,
) -> tuple[keras.Model, keras.optimizers.Optimizer]:
    """The same loop in `strategy.run`; each replica takes its share of every batch, the loss is divided by replicas."""
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        model = model or network()
        optimizer = optimizer or make_optimizer()
        optimizer.build(model.trainable_variables)

    def replica_step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            scaled = optimizer.scale_loss(loss(model, x, y) / replicas)
        optimizer.apply(tape.gradient(scaled, model.trainable_variables), model.trainable_variables)

    def share(t: tf.Tensor) -> tf.Tensor:
        parts = tf.split(t, replicas)
        return strategy.experimental_distribute_values_from_function(lambda c: parts[c.replica_id_in_sync_group])

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        strategy.run(replica_step, args=(x, y))

    if mode == "graph":
        step = tf.function(step)
    for x, y in tensors(data):
        step(share(x), share(y))
    return model, optimizer
