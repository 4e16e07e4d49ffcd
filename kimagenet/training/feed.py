"""Gives each device of a run its batches."""

import logging
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from kimagenet.training.recovery import Recovery, SkippedRecords
from kimagenet.training.strategy import local_ranks
from pipelines.augment import AugmentSpec
from pipelines.decoding import DecoderOptions
from pipelines.errors import BlockedInterrupt, UserError
from pipelines.loader import BatchSpec, Loader
from pipelines.loaders import open_loader
from pipelines.order.spec import ShuffleSpec
from pipelines.shards.shard_set import ShardSet
from pipelines.system.processes import cpu_count
from pipelines.system.watch import NoAnswer, Watch

_QUIET_SECONDS = 20.0
_PATIENCE_SECONDS = 3.0  # a batch that is later than this does not hold up the end of a run

_log = logging.getLogger(__name__)


class GivenUp(Exception):
    """A batch is late, and the caller does not want it any more."""


class Feed:
    """Reads one split for all replicas: a loader for each replica of this process, rank by rank of one plan.

    So each replica decodes its own part, a global batch is the same for any number of replicas, and the rules of
    tf.distribute for sharding and splitting are not needed.

    Args:
        strategy: the replicas.
        loaders: one for each replica of this process, in the order of their ranks.
        corrupt: what to do about records that cannot be decoded; None: end the run.
        timeout: how many seconds a batch may take; 0 = no limit.

    Attributes:
        strategy: as given.
        loaders: as given.
        loader: the name of the loaders.
        device: where they decode, "cpu" or "gpu".
        replicas: how many devices share a batch, those of other processes included.
        shards: the split.
        global_batch: images a step, over all replicas.
        steps_per_epoch: steps of a whole epoch.
        dropped_records: records that an epoch leaves out because they do not fill a batch.
        recovery: decides what happens after a step that could not be read.
        is_blocked: whether a read has not returned, so that the process cannot end in the normal way.
        gives_up: called while a batch is late; if it returns true, `epoch` raises `GivenUp`.

    Raises:
        UserError: records may be skipped, but there are other processes, which would not know.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        loaders: list[Loader],
        corrupt: SkippedRecords | None = None,
        timeout: float = 0.0,
    ) -> None:
        self._ranks = local_ranks(strategy)
        if len(loaders) != len(self._ranks):
            raise ValueError(f"{len(loaders)} loaders for {len(self._ranks)} replicas")
        first = loaders[0]
        self.strategy = strategy
        self.loaders = loaders
        self.loader = first.name
        self.device = first.device
        self.replicas = strategy.num_replicas_in_sync
        self.shards = first.shards
        self.global_batch = first.batch.batch_size * self.replicas
        self.steps_per_epoch = first.steps_per_epoch
        self.dropped_records = first.dropped_records
        self.recovery = Recovery(loaders, SkippedRecords() if corrupt is None else corrupt, timeout)
        self.gives_up: Callable[[], bool] = lambda: False
        self._timeout = timeout
        self._place = ""
        self._said = False
        self._watches = [Watch(timeout or math.inf, self._while_waiting) for _ in loaders]
        self.is_blocked = False

    @property
    def corrupt(self) -> SkippedRecords:
        """The corrupt records of the run, those of its other splits included."""
        return self.recovery.corrupt

    @property
    def decoders(self) -> int:
        """Decoding threads of this process."""
        return sum(loader.options.workers for loader in self.loaders)

    @property
    def description(self) -> str:
        """The loader in words: "dali on the cpu", "2 × dali on the gpu"."""
        count = f"{self.replicas} × " if self.replicas > 1 else ""
        return f"{count}{self.loader} on the {self.device}"

    @property
    def has_peers(self) -> bool:
        """Whether other processes take part."""
        return len(self.loaders) < self.replicas

    def records(self, epoch: int, step: int) -> list[str]:
        """The records of a step, of all replicas, those of other processes included: shard, number and byte.

        A record that is repeated is there once.
        """
        found = []
        for rank in range(self.replicas):
            plan = replace(self.loaders[0].plan(epoch, step), rank=rank)
            for record in plan.records_between(0, plan.batch_size).tolist():
                path = self.shards.paths[self.shards.shard[record]]
                found.append(f"{path}: record {record} of the split, at byte {self.shards.offsets[record]}")
        return list(dict.fromkeys(found))

    def epoch(self, epoch: int, start_step: int = 0, run_epoch: int | None = None) -> Iterator[Any]:
        """Reads an epoch.

        Args:
            epoch: which one, from 0.
            start_step: the first step to read.
            run_epoch: the epoch of the run, for messages and corrupt.jsonl; None: `epoch`.

        Returns:
            The batches, each ready for `strategy.run`, with the tones of their images as the last part if the
            augmentation has any; fewer than `steps_per_epoch` if records are skipped.

        Raises:
            RunFailed: a batch cannot be read; see `Recovery.after`.
            GivenUp: a batch is late, and `gives_up` returned true.
        """
        step, tries = start_step, 0
        iterators = self._open(epoch, step)
        while True:
            self._place, self._said = f"epoch {epoch}, step {step} of the {self.shards.split} split", False
            try:
                batch = self._deal(iterators)
            except StopIteration:
                return
            except (GivenUp, BlockedInterrupt):
                self.is_blocked = True
                raise
            except (tf.errors.OpError, NoAnswer) as failure:
                self.is_blocked = isinstance(failure, NoAnswer)
                tries = self.recovery.after(failure, epoch, step, tries, run_epoch)
            else:
                yield batch
                step, tries = step + 1, 0
                continue
            iterators = self._open(epoch, step)  # not in the `except` block: the failure holds the old ones

    def _open(self, epoch: int, step: int) -> list[Iterator[Any]]:
        iterators = (_batches(loader, epoch, step) for loader in self.loaders)
        return [watch.iterate(iterator) for watch, iterator in zip(self._watches, iterators, strict=True)]

    def _while_waiting(self, seconds: float) -> None:
        """Says after some seconds what is awaited, and from where."""
        if seconds > _PATIENCE_SECONDS and self.gives_up():
            raise GivenUp
        if seconds > _QUIET_SECONDS and not self._said:
            self._said = True
            folder = self.shards.paths[0].parent
            end = f"the run ends after {self._timeout:g} s" if self._timeout else "there is no time limit"
            what = f"{folder}: has waited {seconds:.0f} s for {self._place} ({self.loader})"
            _log.warning("%s; check its disk and network; %s (data_timeout)", what, end)

    def _deal(self, iterators: list[Iterator[Any]]) -> Any:
        """The next batch, or one for each replica."""
        if len(iterators) == 1:
            return next(iterators[0])
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: next(iterators[context.replica_id_in_sync_group - self._ranks.start])
        )

    def close(self) -> None:
        """Closes the loaders. Loaders that wait for a read which may never return are left."""
        self._watches = []  # each ends with the last of its iterators, which it has to free
        for loader in [] if self.is_blocked else self.loaders:
            loader.close()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _batches(loader: Loader, epoch: int, step: int) -> Iterator[Any]:
    """The batches of a loader, with their tones if its augmentation has any."""
    batches = loader.batches(epoch, step)
    return _with_tones(batches, loader.tones(epoch, step)) if loader.augment.has_tones else batches


def _with_tones(batches: Iterator[Any], tones: Iterator[np.ndarray]) -> Generator[Any, None, None]:
    try:
        for batch in batches:
            yield (*batch, tf.constant(next(tones)))
            del batch
    finally:
        batches.close()  # type: ignore[attr-defined]


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
    corrupt: SkippedRecords | None = None,
    timeout: float = 0.0,
    decoder: DecoderOptions | None = None,
    shuffle: ShuffleSpec | None = None,
    repeats: int = 1,
) -> Feed:
    """Opens a loader for each replica of this process.

    Args:
        strategy: the replicas.
        name: a loader, or "auto"; see `open_loader`.
        shards: the split.
        batch: the global batch, which the replicas share.
        augment: the augmentation.
        seed: of the plan.
        workers: decoding threads of this process, shared among its replicas; None: one for each core.
        prefetch: batches kept ready by each loader.
        device: where DALI decodes: "cpu", "gpu" (each replica on its own GPU), or "auto".
        strict: do not use tf.data instead if DALI cannot be used.
        decoder: settings of the GPU's decoder; None: the defaults.
        corrupt: see `Feed`.
        timeout: see `Feed`.
        shuffle: see `open_loader`.
        repeats: see `open_loader`.

    Raises:
        UserError: the batch cannot be divided among the replicas, or a wrong name or value.
    """
    replicas, ranks = strategy.num_replicas_in_sync, local_ranks(strategy)
    if batch.batch_size % replicas:
        raise UserError(
            f"a batch of {batch.batch_size} cannot be divided among {replicas} devices",
            remedy=f"choose a multiple of {replicas}",
            setting="batch_size",
        )
    if len(ranks) > 1:
        workers = max(1, (workers or cpu_count()) // len(ranks))
    part = BatchSpec(batch.batch_size // replicas, batch.image_size, batch.dtype)
    options: dict[str, Any] = {"seed": seed, "workers": workers, "prefetch": prefetch, "device": device}
    options |= {"strict": strict, "decoder": decoder, "shuffle": shuffle, "repeats": repeats}
    loaders: list[Loader] = []
    for gpu, rank in enumerate(ranks):
        # The first loader may have been replaced by another one, with a warning.
        chosen = loaders[0].name if loaders else name
        loaders.append(open_loader(chosen, shards, part, augment, rank=rank, world_size=replicas, gpu=gpu, **options))
    return Feed(strategy, loaders, corrupt, timeout)
