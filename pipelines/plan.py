"""EpochPlan: the record at each position of an epoch, and its draws. A pure function of its fields."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pipelines.augment import AugmentSpec, Draws
from pipelines.errors import UserError
from pipelines.order.base import FileOrder, Order, deal_evenly
from pipelines.order.spec import ShuffleSpec
from pipelines.shards.shard_set import ShardSet
from pipelines.uniform import RecordUniform

_Values = Callable[[int, int], np.ndarray]  # of a range of global positions
_Deal = Callable[[np.ndarray, int], np.ndarray]  # see `Order.deal`


@dataclass(frozen=True)
class EpochPlan:
    """One rank's part of one epoch, from `start_step` on.

    Training (any spec except `AugmentSpec.evaluation`): all usable records are shuffled and cut into global batches of
    `batch_size * world_size`, which do not depend on the number of ranks. The order divides each among the ranks so
    that a rank reads whole blocks. Records that do not fill a last global batch are dropped in this epoch
    (`dropped_records`), different ones each epoch.
    With `repeats`, a global batch has fewer records, each of them so many times with other draws (Hoffer et al., arXiv
    1901.09335), on different ranks where there are several. An epoch has as many steps as without: it takes the first
    records of the order, other ones in each epoch. The copies of a record are not side by side, as mixup needs it.
    Evaluation: every usable record once, in file order. The last global batch is filled with repeats of weight 0.

    Balanced sampling (`ShuffleSpec.is_balanced`): as many records of each class; records of rare classes come several
    times in an epoch, each time with other draws.

    Records that turn out to be corrupt during a run are `skipped`: they take part in the shuffle and are removed
    afterwards. So the records before the first of them keep their places, and the later ones move up.

    Example: the second half of epoch 3 on the first of two ranks.
        plan = EpochPlan(shards, AugmentSpec.train(), batch_size=64, image_size=224, epoch=3, world_size=2)
        rest = dataclasses.replace(plan, start_step=plan.steps_per_epoch // 2)
        rest.records, rest.draw(0, 64).affine

    Raises:
        UserError: a value is out of range, or the records do not fill one global batch.

    Attributes:
        shards: one split.
        augment: what is drawn for each record; it also says whether this is an evaluation.
        batch_size: records per step on this rank, at least 1.
        image_size: side of the output, pixels.
        seed: from 0. Seed, epoch and record make every draw; seed and epoch make the order.
        epoch: from 0.
        rank: which part of each global batch, 0 ≤ rank < world_size.
        world_size: the number of ranks.
        start_step: steps that are left out because they are done, 0 … steps_per_epoch.
        shuffle: how the records are shuffled.
        skipped: usable records that are left out, ascending.
        repeats: how often each record of a global batch occurs in it; divides `batch_size`.
    """

    shards: ShardSet
    augment: AugmentSpec
    batch_size: int
    image_size: int
    seed: int = 0
    epoch: int = 0
    rank: int = 0
    world_size: int = 1
    start_step: int = 0
    shuffle: ShuffleSpec = field(default_factory=ShuffleSpec)
    skipped: tuple[int, ...] = ()
    repeats: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "image_size", "world_size", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"plan: {name} must be positive, not {getattr(self, name)}", setting=name)
        if self.seed < 0 or self.epoch < 0:
            raise UserError(f"plan: seed and epoch must not be negative, not {self.seed} and {self.epoch}")
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"plan: rank must be in 0 … {self.world_size - 1}, not {self.rank}")
        if self.batch_size % self.repeats:
            what = f"plan: a batch of {self.batch_size} is no multiple of {self.repeats} repeats"
            raise UserError(what, remedy=f"choose a multiple of {self.repeats}", setting="batch_size")
        if self.repeats > 1 and self.augment.is_evaluation:
            raise UserError("plan: an evaluation has no repeats", setting="repeats")
        if self.steps_per_epoch == 0:
            without = f", without {len(self.skipped)} corrupt ones," if self.skipped else ""
            what = (
                f"plan: {self.num_records} records in the {self.shards.split} split{without} do not fill one batch of "
                f"{self.batch_size} × {self.world_size}"
            )
            raise UserError(what, remedy="choose a smaller batch_size", setting="batch_size")
        if not 0 <= self.start_step <= self.steps_per_epoch:
            raise UserError(f"plan: start_step must be in 0 … {self.steps_per_epoch}, not {self.start_step}")

    @property
    def global_batch(self) -> int:
        """Records per step over all ranks."""
        return self.batch_size * self.world_size

    @property
    def num_records(self) -> int:
        """Records that may be read: the usable ones except the skipped."""
        usable, skipped = self.shards.usable, np.unique(np.array(self.skipped, np.int64))
        places = np.minimum(np.searchsorted(usable, skipped), len(usable) - 1)
        return len(usable) - int(np.count_nonzero(usable[places] == skipped))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch, whatever `start_step` is."""
        count = self.num_records
        return -(-count // self.global_batch) if self.augment.is_evaluation else count // self.global_batch

    @property
    def dropped_records(self) -> int:
        """Records that may be read, but that no rank gets in this epoch."""
        return max(0, self.num_records - self.steps_per_epoch * self._step_records)

    @cached_property
    def records(self) -> np.ndarray:
        """int64 [steps × batch_size]: the record at each position, from `start_step` on."""
        return self.records_between(0, self._positions)

    @cached_property
    def weights(self) -> np.ndarray:
        """float32 [steps × batch_size]: 1, or 0 for the repeats that fill the last evaluation batch."""
        return self.weights_between(0, self._positions)

    def records_between(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop − start]: the records at the positions `start` … `stop` − 1."""
        return self._picks_between(start, stop) % self.shards.num_records

    def weights_between(self, start: int, stop: int) -> np.ndarray:
        """float32 [stop − start]: the weights of the positions `start` … `stop` − 1."""
        weights = self._mine(start, stop, lambda first, last: np.arange(first, last) < self.num_records, deal_evenly)
        return weights.astype(np.float32)

    def together(self, records: np.ndarray) -> np.ndarray:
        """int64 [K, 2]: the block of each of the records, which one request reads; see `Order.together`."""
        return self._order.together(records)

    @property
    def has_runs(self) -> bool:
        """Whether most neighbours are in the same shard."""
        return self._whole_order.has_runs

    def draw(self, start: int, stop: int) -> Draws:
        """The draws of positions `start` … `stop` − 1 of `records`."""
        uniform = self._uniform(start, stop)
        heights, widths = self.shards.sizes[uniform.records % self.shards.num_records].T
        return self.augment.draw(uniform, heights, widths, self.image_size)

    def tones(self, start: int, stop: int) -> np.ndarray:
        """float32 [stop − start, K, 2]: what the training device does to these positions; see `AugmentSpec.tones`."""
        return self.augment.tones(self._uniform(start, stop), self.image_size)

    @property
    def draws(self) -> Draws:
        """The draws of all positions. They take 160 bytes each, so use `draw` for parts of long plans."""
        return self.draw(0, self._positions)

    @property
    def _step_records(self) -> int:
        """Different records of a step, over all ranks."""
        return self.global_batch // self.repeats

    def _uniform(self, start: int, stop: int) -> RecordUniform:
        picks = self._picks_between(start, stop)
        if self.repeats == 1:
            return RecordUniform(self.seed, self.epoch, picks)
        copies = np.arange(start, stop) % self.batch_size // (self.batch_size // self.repeats)
        return RecordUniform(self.seed, self.epoch, picks, copies)

    @property
    def _positions(self) -> int:
        return (self.steps_per_epoch - self.start_step) * self.batch_size

    @cached_property
    def _whole_order(self) -> Order:
        if self.augment.is_evaluation:
            return FileOrder(self.shards.usable)
        return self.shuffle.order(self.shards, self.seed, self.epoch)

    @cached_property
    def _order(self) -> Order:
        return self._whole_order.without(self.skipped)

    def _picks_between(self, start: int, stop: int) -> np.ndarray:
        """The picks at this rank's positions, see `Order.between`. A copy of a record has draws that belong to it."""
        return self._mine(start, stop, self._global_picks, self._order.deal)

    def _global_picks(self, start: int, stop: int) -> np.ndarray:
        """The picks at global positions; those after the last are the last one again."""
        found = self._order.between(start, min(stop, self.num_records))
        if missing := stop - start - len(found):
            last = self._order.between(self.num_records - 1, self.num_records)
            found = np.concatenate([found, np.repeat(last, missing)])
        return found

    def _mine(self, start: int, stop: int, globally: _Values, deal: _Deal) -> np.ndarray:
        """This rank's part of what a function gives for a range of global positions."""
        first, last = start // self.batch_size, -(-stop // self.batch_size)
        width = self._step_records
        values = globally((self.start_step + first) * width, (self.start_step + last) * width)
        parts = deal(values.reshape(last - first, width), self.world_size)
        # The first copies of a record are on one rank, the second ones on the next.
        copies = [parts[:, (self.rank + copy) % self.world_size] for copy in range(self.repeats)]
        dealt = np.concatenate(copies, axis=1).reshape(-1)
        return dealt[start - first * self.batch_size : stop - first * self.batch_size]
