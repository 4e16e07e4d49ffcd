"""What every loader promises: an epoch of the plan as a `tf.data.Dataset` of batches."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.augment import AugmentSpec
from pipelines.decoding import DecoderOptions
from pipelines.errors import UserError
from pipelines.plan import EpochPlan
from pipelines.shards.shard_set import ShardSet
from pipelines.system.memory import memory_returned

if TYPE_CHECKING:
    import tensorflow as tf

DTYPES = ("float32", "float16", "uint8")
DEVICES = ("auto", "cpu", "gpu")

_OPEN_AHEAD = 32  # steps before its end that `Loader.batches` opens the next epoch: DALI reads its indexes first


@dataclass(frozen=True)
class BatchSpec:
    """The shape of a batch: images `dtype` [batch_size, image_size, image_size, 3], RGB.

    float32 and float16 images lie in [-1, 1]; uint8 images in 0…255, scaling is left to the training step.
    """

    batch_size: int
    image_size: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.image_size < 1:
            raise UserError(f"batch: sizes must be positive, not {self.batch_size} × {self.image_size} px")
        if self.dtype not in DTYPES:
            raise UserError(f"batch: dtype is one of {', '.join(DTYPES)}, not {self.dtype!r}")

    def to_output_range(self, colour: np.ndarray) -> np.ndarray:
        """Folds the scaling of 0…255 to the output's range into colour matrices [N, 3, 4]."""
        if self.dtype == "uint8":
            return colour
        scaled = colour * (2 / 255)
        scaled[:, :, 3] -= 1
        return scaled


@dataclass(frozen=True)
class LoaderOptions:
    """How a loader works, without any influence on what it gives.

    Attributes:
        workers: decoding threads. prefetch: batches kept ready. device: where DALI decodes. gpu: which one of several.
        decoder: settings of the GPU's decoder.
    """

    workers: int
    prefetch: int = 2
    device: str = "cpu"
    gpu: int = 0
    decoder: DecoderOptions = field(default_factory=DecoderOptions)

    def __post_init__(self) -> None:
        if self.workers < 1 or self.prefetch < 1:
            raise UserError(f"loader: workers and prefetch must be positive, not {self.workers} and {self.prefetch}")
        if self.device not in ("cpu", "gpu"):
            raise UserError(f"loader: device is cpu or gpu, not {self.device!r}")


class Loader(ABC):
    """One split, ready to be read epoch by epoch. Subclasses execute plans; they decide and draw nothing.

    Training datasets yield (images, labels), evaluation datasets (images, labels, weights): images as `BatchSpec`
    says, labels int32 [B] from 0, weights float32 [B], 0 for the padding of the last batch.
    """

    name: str

    def __init__(
        self,
        shards: ShardSet,
        batch: BatchSpec,
        augment: AugmentSpec,
        seed: int,
        rank: int,
        world_size: int,
        options: LoaderOptions,
    ) -> None:
        self.shards = shards
        self.batch = batch
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.options = options
        self.skipped: tuple[int, ...] = ()
        self.steps_per_epoch = self.plan(0).steps_per_epoch
        self.dropped_records = self.plan(0).dropped_records
        self._opener = ThreadPoolExecutor(1, "kimagenet-epoch")
        self._opened: dict[int, Future[Iterator[Any]]] = {}

    def plan(self, epoch: int, start_step: int = 0) -> EpochPlan:
        """The plan that `epoch(epoch, start_step)` carries out."""
        return EpochPlan(
            self.shards,
            self.augment,
            self.batch.batch_size,
            self.batch.image_size,
            seed=self.seed,
            epoch=epoch,
            rank=self.rank,
            world_size=self.world_size,
            start_step=start_step,
            skipped=self.skipped,
        )

    def skip(self, records: Iterable[int]) -> None:
        """Takes records out of every plan from now on. What was opened before has to be opened anew.

        `steps_per_epoch` stays what it was, so that steps keep their numbers: an epoch that lacks records ends sooner.
        """
        for opening in self._opened.values():
            _ = opening.cancel() or opening.exception()  # one that has begun is waited for
        with memory_returned():
            self._opened.clear()
        self.skipped = tuple(sorted({*self.skipped, *records}))

    @abstractmethod
    def epoch(self, epoch: int, start_step: int = 0) -> "tf.data.Dataset":
        """The batches of one epoch from `start_step` on.

        Read `steps_per_epoch - start_step` of them (the plan's, where records are skipped): on a GPU, DALI's dataset
        has no end of its own. A dataset stays readable until an epoch that is neither the next nor the one before is
        opened, or the loader is closed.
        """

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """Exactly the batches that remain, one by one: `epoch` for loops of one's own.

        The next epoch of a training loader is opened, and its first batch made, while the last ones of this are used.
        """
        if start_step == 0 and epoch in self._opened:
            iterator = self._opened.pop(epoch).result()
        else:
            iterator = iter(self.epoch(epoch, start_step))
        steps = self.plan(epoch).steps_per_epoch
        try:
            for step in range(start_step, steps):
                if step == max(start_step, steps - _OPEN_AHEAD) and not self.augment.is_evaluation:
                    self._opened[epoch + 1] = self._opener.submit(self._open, epoch + 1)
                yield next(iterator)
        except Exception as error:
            clear_frames(error.__traceback__)  # those of TensorFlow hold the iterator
            raise
        finally:  # most readers do not ask for more than there is
            with memory_returned():
                del iterator  # and with it the threads

    def _open(self, epoch: int) -> Iterator[Any]:
        iterator = iter(self.epoch(epoch))
        return chain([next(iterator)], iterator)

    def close(self) -> None:
        """Stops background work and removes temporary files."""
        self._opener.shutdown(wait=True, cancel_futures=True)
        with memory_returned():
            self._opened.clear()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
