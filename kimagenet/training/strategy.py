"""Which devices take part in a run, and what they agree on."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from kimagenet.models import batch_norms
from kimagenet.training.cluster import Cluster


def choose_strategy() -> tf.distribute.Strategy:
    """Chooses how a run is distributed.

    Call it before anything else uses a GPU: it lets TensorFlow leave GPU memory to DALI.

    Returns:
        MultiWorkerMirroredStrategy if TF_CONFIG names several workers, MirroredStrategy for several GPUs, else
        TensorFlow's default.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if (cluster := Cluster.from_environment()).size > 1:
        cluster.wait_for_all()
        with _default_signals():
            return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()


@contextmanager
def _default_signals() -> Iterator[None]:
    """Within it, signals end the process at once. Python cannot act on them while TensorFlow connects the workers."""
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in ends}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def local_ranks(strategy: tf.distribute.Strategy) -> range:
    """The ranks of the replicas of this process."""
    cluster = Cluster.from_environment()
    local = strategy.num_replicas_in_sync // cluster.size
    return range(local * cluster.rank, local * (cluster.rank + 1))


def all_agree(strategy: tf.distribute.Strategy, value: int) -> bool:
    """Whether all processes have the same `value`. A collective operation; if not, at least one process gets False."""

    @tf.function
    def total() -> tf.Tensor:
        values = strategy.run(lambda: tf.constant(value, tf.int64))
        return strategy.reduce("SUM", values, axis=None)

    return int(total()) == value * strategy.num_replicas_in_sync


def synchronize_batch_norm(model: keras.Model) -> None:
    """Lets BatchNormalization use mean and variance over the batches of all replicas: their number changes nothing."""
    for layer in batch_norms(model):
        layer.synchronized = True


def make_statistics_mean(model: keras.Model, strategy: tf.distribute.Strategy) -> Callable[[], None]:
    """Makes a function that sets BatchNormalization's moving statistics to their mean over the replicas.

    Without it, replicas whose layers are not synchronized keep different ones, and only those of the first are saved.
    Layers that are frozen now are left out: a mean of equal values may be rounded.
    """
    layers = [layer for layer in batch_norms(model) if layer.trainable and not layer.synchronized]
    statistics = [value for layer in layers for value in (layer.moving_mean, layer.moving_variance)]
    if strategy.num_replicas_in_sync == 1 or not statistics:
        return lambda: None

    def replica_step() -> None:
        context = tf.distribute.get_replica_context()
        means = context.all_reduce("MEAN", [tf.convert_to_tensor(value.value) for value in statistics])
        for value, mean in zip(statistics, means, strict=True):
            value.assign(mean)

    return tf.function(lambda: strategy.run(replica_step))


def set_batch_norm_momentum(model: keras.Model, momentum: float) -> None:
    """Sets how slowly the moving statistics of all BatchNormalization layers follow; the saved model keeps it."""
    for layer in batch_norms(model):
        layer.momentum = momentum
