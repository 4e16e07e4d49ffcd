"""Which devices take part in a run, and how each of them gets its batches."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import keras
import tensorflow as tf

from kimagenet.cluster import Cluster
from pipelines.augment import AugmentSpec
from pipelines.errors import UserError
from pipelines.loader import BatchSpec, Loader
from pipelines.loaders import open_loader
from pipelines.pool import cpu_count
from pipelines.shards import ShardSet


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


class Feed:
    """One split for all replicas of a strategy: a loader for each replica of this process, rank by rank of one plan.

    So every replica decodes its own part, a global batch is the same whatever the number of replicas is, and
    tf.distribute's rules of sharding and splitting never come into play.
    """

    def __init__(self, strategy: tf.distribute.Strategy, loaders: list[Loader]) -> None:
        self._ranks = local_ranks(strategy)
        if len(loaders) != len(self._ranks):
            raise ValueError(f"{len(loaders)} loaders for {len(self._ranks)} replicas")
        self.strategy = strategy
        self.loaders = loaders
        self.shards = loaders[0].shards
        self.replicas = strategy.num_replicas_in_sync
        self.global_batch = loaders[0].batch.batch_size * self.replicas
        self.steps_per_epoch = loaders[0].steps_per_epoch
        self.dropped_records = loaders[0].dropped_records

    @property
    def description(self) -> str:
        """What reads, for the banner: "dali on the cpu"."""
        first = self.loaders[0]
        device = first.options.device if first.name == "dali" else "cpu"
        count = f"{self.replicas} × " if self.replicas > 1 else ""
        return f"{count}{first.name} on the {device}"

    @property
    def has_peers(self) -> bool:
        """Whether other processes take part."""
        return len(self.loaders) < self.replicas

    def records(self, epoch: int, step: int) -> list[str]:
        """The records of a step, of all replicas, other processes' included: shard, number and byte."""
        found = []
        for rank in range(self.replicas):
            plan = replace(self.loaders[0].plan(epoch, step), rank=rank)
            for record in plan.records[: plan.batch_size].tolist():
                path = self.shards.paths[self.shards.shard[record]]
                found.append(f"{path}: record {record} of the split, at byte {self.shards.offsets[record]}")
        return found

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """The batches of an epoch from `start_step` on, each ready for `strategy.run`.

        Raises `UserError` with the loader's reason if one cannot be read.
        """
        iterators = [loader.batches(epoch, start_step) for loader in self.loaders]
        for step in range(start_step, self.steps_per_epoch):
            try:
                yield self._deal(iterators)
            except tf.errors.OpError as error:
                where = f"{self.loaders[0].name}: epoch {epoch}, step {step} of the {self.shards.split} split"
                raise UserError(f"{where} cannot be read: {_reason(error)}") from error

    def _deal(self, iterators: list[Iterator[Any]]) -> Any:
        """One batch, or one for each replica."""
        if len(iterators) == 1:
            return next(iterators[0])
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: next(iterators[context.replica_id_in_sync_group - self._ranks.start])
        )

    def close(self) -> None:
        """Closes the loaders."""
        for loader in self.loaders:
            loader.close()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_feed(
    strategy: tf.distribute.Strategy,
    name: str,
    shards: ShardSet,
    batch: BatchSpec,
    augment: AugmentSpec,
    *,
    seed: int = 0,
    workers: int | None = None,
    prefetch: int = 2,
    device: str = "auto",
    strict: bool = False,
) -> Feed:
    """Opens a loader for each replica; the arguments are those of `open_loader`, `batch` is the global batch.

    `workers` are shared among this process's replicas, each of which decodes on its own GPU. Raises `UserError` if the
    batch does not divide among them.
    """
    replicas, ranks = strategy.num_replicas_in_sync, local_ranks(strategy)
    if batch.batch_size % replicas:
        raise UserError(f"a batch of {batch.batch_size} does not divide among {replicas} devices; change --batch-size")
    if len(ranks) > 1:
        workers = max(1, (workers or cpu_count()) // len(ranks))
    part = BatchSpec(batch.batch_size // replicas, batch.image_size, batch.dtype)
    loaders: list[Loader] = []
    for gpu, rank in enumerate(ranks):
        # The first one may have fallen back to another loader, and said so.
        chosen = loaders[0].name if loaders else name
        loaders.append(
            open_loader(
                chosen,
                shards,
                part,
                augment,
                seed=seed,
                rank=rank,
                world_size=replicas,
                workers=workers,
                prefetch=prefetch,
                device=device,
                gpu=gpu,
                strict=strict,
            )
        )
    return Feed(strategy, loaders)


def _reason(error: tf.errors.OpError) -> str:
    """The line that says why, out of TensorFlow's and DALI's pages."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    if "encountered:" in lines[:-1]:  # DALI, after its traceback
        return lines[lines.index("encountered:") + 1]
    return lines[0] if lines else type(error).__name__
