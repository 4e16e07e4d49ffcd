"""What test_optim.py runs in separate processes. The last line it prints is a JSON object {case: difference}.

python -m tests.helpers.optim_script mirrored   MirroredStrategy on two logical CPUs
python -m tests.helpers.optim_script worker     one of two workers, TF_CONFIG says which
python -m tests.helpers.optim_script resume FILE.keras START OUT.npz   continues from micro-step START, within a cycle
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

from tests.helpers import optim_network as network
from tests.helpers import optim_reference as reference
from tests.helpers.optim_reference import SETTINGS

WRAPPERS = {"sync_period": 5, "iter_size": 3, "clip": 1.0}
CASES = {
    "lookahead momentum": (SETTINGS["momentum"].replace(sync_period=5), "lookahead"),
    "lookahead adamw": (SETTINGS["adamw"].replace(sync_period=5), "lookahead"),
    "lookahead reset adam": (SETTINGS["adam"].replace(sync_period=5, reset=True), "lookahead"),
    "iter_size adamw clip": (SETTINGS["adamw"].replace(iter_size=3, clip=1.0), "clip iter_size"),
    "iter_size ema": (SETTINGS["adam"].replace(iter_size=3, ema=0.8), "iter_size"),
    "clip": (SETTINGS["sgd"].replace(clip=1.0), "clip"),
    "iter_size outside": (SETTINGS["momentum"].replace(**WRAPPERS), "clip lookahead iter_size"),
    "lookahead outside": (SETTINGS["momentum"].replace(**WRAPPERS), "clip iter_size lookahead"),
    "loss scale outside": (SETTINGS["adamw"].replace(**WRAPPERS), "clip lookahead iter_size loss_scale"),
    "loss scale inside": (SETTINGS["adamw"].replace(**WRAPPERS), "clip loss_scale lookahead iter_size"),
}


def differences(settings: reference.Settings, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> float:
    """Of the weights on each local replica, of the slow weights or the average, and of the count of updates."""
    data = reference.micro_batches(reference.batches(), settings.iter_size)
    expected = reference.train(settings, data)
    found = 0.0
    for variable, weight in zip(model.trainable_variables, expected.weights, strict=True):
        local = tf.distribute.get_strategy().experimental_local_results(variable.value)
        found = max(found, *(float(np.abs(v.numpy() - weight).max()) for v in local))
    optimizer.finalize_variable_values(model.trainable_variables)
    final = expected.average if settings.ema else expected.slow
    updates = abs(int(optimizer.iterations.numpy()) - expected.updates)
    return max(found, reference.distance(model.get_weights(), final), updates)


def strategy_case(strategy: tf.distribute.Strategy, case: str, mode: str = "graph") -> float:
    settings, order = CASES[case]
    data = reference.micro_batches(reference.batches(), settings.iter_size)
    model, optimizer = network.train_distributed(strategy, lambda: network.optimizer(settings, order), data, mode)
    with strategy.scope():
        return differences(settings, model, optimizer)


def resumed_case(strategy: tf.distribute.Strategy) -> float:
    """Stops in the middle of both cycles, carries all variables into a new model and optimizer, and continues."""
    settings, order = CASES["iter_size outside"]
    data = reference.micro_batches(reference.batches(), settings.iter_size)

    def make() -> keras.optimizers.Optimizer:
        return network.optimizer(settings, order)

    model, optimizer = network.train_distributed(strategy, make, data[:38])
    saved = [variable.numpy() for variable in (*model.trainable_variables, *optimizer.variables)]
    model, optimizer = network.train_distributed(strategy, make, [])
    with strategy.scope():
        for variable, value in zip((*model.trainable_variables, *optimizer.variables), saved, strict=True):
            variable.assign(value)
    network.train_distributed(strategy, make, data[38:], model=model, optimizer=optimizer)
    with strategy.scope():
        return differences(settings, model, optimizer)


def mirrored() -> dict[str, float]:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    found = {case: strategy_case(strategy, case) for case in CASES}
    found["eager"] = strategy_case(strategy, "iter_size outside", "eager")
    found["resumed"] = resumed_case(strategy)

    # Why ClipGlobalNorm exists: Keras' own clipping is not the same thing here.
    settings = CASES["clip"][0]
    model, _ = network.train_distributed(
        strategy, lambda: keras.optimizers.SGD(settings.rate, global_clipnorm=settings.clip), reference.batches()
    )
    expected = reference.train(settings, reference.batches()).weights
    found["Keras' own clipping"] = reference.distance(model.get_weights(), expected)
    return found


def worker() -> dict[str, float]:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    assert strategy.num_replicas_in_sync == 2
    return {"loss scale outside": strategy_case(strategy, "loss scale outside"), "resumed": resumed_case(strategy)}


def resume(path: str, start: str, output: str) -> dict[str, float]:
    model = keras.models.load_model(path)
    settings, _ = CASES["iter_size outside"]
    for x, y in reference.micro_batches(reference.batches(), settings.iter_size)[int(start) :]:
        model.train_on_batch(x, y)
    fast = model.get_weights()
    model.optimizer.finalize_variable_values(model.trainable_variables)
    np.savez(output, *fast, *model.get_weights())
    return {}


if __name__ == "__main__":
    modes = {"mirrored": mirrored, "worker": worker, "resume": resume}
    print(json.dumps(modes[sys.argv[1]](*sys.argv[2:])))
