"""Which devices take part in a run, and what they have to agree on."""

from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from kimagenet.training.cluster import Cluster


def choose_strategy() -> tf.distribute.Strategy:
    """MultiWorkerMirroredStrategy if TF_CONFIG names several workers; MirroredStrategy over several GPUs; else neither.

    Call it before anything else touches a GPU: TensorFlow is told to leave memory to DALI.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if Cluster.from_environment().size > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()


def local_ranks(strategy: tf.distribute.Strategy) -> range:
    """Which replicas of all are this process's own."""
    cluster = Cluster.from_environment()
    local = strategy.num_replicas_in_sync // cluster.size
    return range(local * cluster.rank, local * (cluster.rank + 1))


def all_agree(strategy: tf.distribute.Strategy, value: int) -> bool:
    """Whether all processes give the same `value`; a collective operation. If they do not, one at least gets False."""

    @tf.function
    def total() -> tf.Tensor:
        values = strategy.run(lambda: tf.constant(value, tf.int64))
        return strategy.reduce("SUM", values, axis=None)

    return int(total()) == value * strategy.num_replicas_in_sync


def synchronize_batch_norm(model: keras.Model) -> None:
    """BatchNormalization takes mean and variance over the batches of all replicas, so that these change nothing."""
    for layer in _batch_norms(model):
        layer.synchronized = True


def make_statistics_mean(model: keras.Model, strategy: tf.distribute.Strategy) -> Callable[[], None]:
    """A function that gives BatchNormalization's moving statistics their mean over the replicas.

    Without it each replica keeps its own, where layers are not synchronized, and only those of the first are saved.
    """
    layers = [layer for layer in _batch_norms(model) if not layer.synchronized]
    statistics = [value for layer in layers for value in (layer.moving_mean, layer.moving_variance)]
    if strategy.num_replicas_in_sync == 1 or not statistics:
        return lambda: None

    def replica_step() -> None:
        context = tf.distribute.get_replica_context()
        means = context.all_reduce("MEAN", [tf.convert_to_tensor(value.value) for value in statistics])
        for value, mean in zip(statistics, means, strict=True):
            value.assign(mean)

    return tf.function(lambda: strategy.run(replica_step))


def _batch_norms(model: keras.Model) -> Iterator[keras.layers.BatchNormalization]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _batch_norms(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            yield layer
