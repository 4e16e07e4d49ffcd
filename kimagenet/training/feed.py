"""How each device of a run gets its batches."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from kimagenet.training.recovery import CorruptRecords
from kimagenet.training.strategy import local_ranks
from pipelines.augment import AugmentSpec
from pipelines.decoding import DecoderOptions
from pipelines.errors import Blocked, RunFailed, UserError
from pipelines.loader import BatchSpec, Loader
from pipelines.loaders import open_loader
from pipelines.shards.corrupt import CorruptRecord, find_corrupt, problem_of_shards
from pipelines.shards.shard_set import ShardSet
from pipelines.system.processes import cpu_count
from pipelines.system.watch import NoAnswer, Watch

logger = logging.getLogger(__name__)

TRIES_AGAIN = 3  # of a step that fails though its records can be read and decoded


class Feed:
    """One split for all replicas of a strategy: a loader for each replica of this process, rank by rank of one plan.

    So every replica decodes its own part, a global batch is the same whatever the number of replicas is, and
    tf.distribute's rules of sharding and splitting never come into play.

    `corrupt` says what becomes of records that cannot be decoded; `timeout` is how many seconds a batch may take,
    0 = for ever. Raises `UserError` if records may be skipped and other processes would have to know.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        loaders: list[Loader],
        corrupt: CorruptRecords | None = None,
        timeout: float = 0.0,
    ) -> None:
        self._ranks = local_ranks(strategy)
        if len(loaders) != len(self._ranks):
            raise ValueError(f"{len(loaders)} loaders for {len(self._ranks)} replicas")
        self.strategy = strategy
        self.replicas = strategy.num_replicas_in_sync
        self.loaders = loaders
        self.corrupt = CorruptRecords() if corrupt is None else corrupt
        if self.has_peers and self.corrupt.policy == "skip":
            raise UserError(
                "--on-corrupt skip: one worker cannot tell the others; take stop, and quarantine what it finds"
            )
        self._watches = [Watch(timeout) for _ in loaders] if timeout else []
        self._is_blocked = False
        self.shards = loaders[0].shards
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

    def _numbers(self, epoch: int, step: int) -> list[int]:
        parts = [loader.plan(epoch, step).records[: loader.batch.batch_size] for loader in self.loaders]
        return np.concatenate(parts).tolist()

    def skip(self, records: Sequence[int]) -> None:
        """Takes records out of all epochs from now on; see `Loader.skip`."""
        for loader in self.loaders:
            loader.skip(records)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """The batches of an epoch from `start_step` on, each ready for `strategy.run`.

        There are fewer than `steps_per_epoch` if records are skipped. Where a step fails and none of its records is to
        blame, it is read again, `TRIES_AGAIN` times. Raises `RunFailed` with the file, and if it is known the record,
        if a batch cannot be read.
        """
        step, tries = start_step, 0
        iterators = self._open(epoch, step)
        while True:
            failure: Exception
            try:
                batch = self._deal(iterators)
            except StopIteration:
                return
            except (tf.errors.OpError, NoAnswer) as error:
                failure = error
            else:
                yield batch
                step, tries = step + 1, 0
                continue
            try:
                if found := self._find_corrupt(epoch, step, failure):
                    self._go_on_without(found, epoch, step)
                else:
                    tries += 1
                    self._try_again(epoch, step, tries, failure)
            finally:
                del failure  # and with it what it holds of the old iterators; left here, it would hold itself
            iterators = self._open(epoch, step)

    def _open(self, epoch: int, step: int) -> list[Iterator[Any]]:
        iterators = (loader.batches(epoch, step) for loader in self.loaders)
        if not self._watches:
            return list(iterators)
        return [watch.iterate(iterator) for watch, iterator in zip(self._watches, iterators, strict=True)]

    def _find_corrupt(self, epoch: int, step: int, failure: Exception) -> list[CorruptRecord]:
        """The records that made a step fail, if it was records. Raises `RunFailed` if a shard cannot be read at all.

        Transient read errors are over when this returns: it has read the whole batch, with patience.
        """
        numbers = self._numbers(epoch, step)
        self._is_blocked = isinstance(failure, NoAnswer)
        try:
            problem = problem_of_shards(self.shards, numbers)
            if self._is_blocked:
                late = f"did not come within --data-timeout {self._watches[0].seconds:g}, though its shards answer"
                raise Blocked(problem or f"{self._name(epoch, step)} {late}") from failure
            if problem:
                raise RunFailed(problem) from failure
            return find_corrupt(self.shards, numbers)
        except OSError as error:
            raise RunFailed(f"{error.filename}: {error.strerror}") from failure

    def _name(self, epoch: int, step: int) -> str:
        return f"{self.loaders[0].name}: epoch {epoch}, step {step} of the {self.shards.split} split"

    def _try_again(self, epoch: int, step: int, tries: int, failure: Exception) -> None:
        """Has the step read anew, since its records are good. Raises `RunFailed` if that was done often enough."""
        if tries > TRIES_AGAIN:
            raise RunFailed(f"{self._name(epoch, step)} cannot be read: {_reason(failure)}") from failure
        what = f"failed ({_reason(failure)}), but all its records can be read; try {tries} of {TRIES_AGAIN}"
        logger.warning("%s %s", self._name(epoch, step), what)
        self.skip([])  # what was opened ahead may have failed, too

    def _go_on_without(self, found: list[CorruptRecord], epoch: int, step: int) -> None:
        """Skips the records. Raises `RunFailed` if the run may not, or if too few are left for a batch."""
        self.corrupt.judge(found, epoch, step)
        self.skip([record.record for record in found])
        try:
            self.loaders[0].plan(epoch, step)
        except UserError as error:
            left = np.setdiff1d(self.shards.usable, self.loaders[0].skipped)
            if found := find_corrupt(self.shards, left):  # no step would ever meet them
                self._go_on_without(found, epoch, step)
            raise RunFailed(str(error)) from None

    def _deal(self, iterators: list[Iterator[Any]]) -> Any:
        """One batch, or one for each replica."""
        if len(iterators) == 1:
            return next(iterators[0])
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: next(iterators[context.replica_id_in_sync_group - self._ranks.start])
        )

    def close(self) -> None:
        """Closes the loaders, unless they are stuck in a read: that would never end."""
        self._watches = []  # each ends with the last of its iterators, which it has to let go
        for loader in [] if self._is_blocked else self.loaders:
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
    corrupt: CorruptRecords | None = None,
    timeout: float = 0.0,
    decoder: DecoderOptions | None = None,
) -> Feed:
    """Opens a loader for each replica; the arguments are those of `open_loader` and `Feed`, `batch` is the global one.

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
                decoder=decoder,
            )
        )
    return Feed(strategy, loaders, corrupt, timeout)


def _reason(error: Exception) -> str:
    """The line that says why, out of TensorFlow's and DALI's pages."""
    lines = [line.strip() for line in getattr(error, "message", str(error)).splitlines() if line.strip()]
    if "encountered:" in lines[:-1]:  # DALI, after its traceback
        return lines[lines.index("encountered:") + 1]
    return lines[0] if lines else type(error).__name__
