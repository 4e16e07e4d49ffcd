"""The contract of all loaders: an epoch of the plan as a `tf.data.Dataset` of batches."""

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

_OPEN_AHEAD = 32  # steps before the end of an epoch at which the next one is opened: DALI reads its indexes first


@dataclass(frozen=True)
class BatchSpec:
    """The shape of a batch of images: [batch_size, image_size, image_size, 3], RGB.

    Raises:
        UserError: a size is not positive, or the dtype is not one of `DTYPES`.

    Attributes:
        batch_size: images per batch.
        image_size: side of the images, pixels.
        dtype: "float32" or "float16" for images in [-1, 1]; "uint8" for 0…255, which the training step scales.
    """

    batch_size: int
    image_size: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.image_size < 1:
            sizes = f"{self.batch_size} and {self.image_size}"
            raise UserError(f"batch: batch_size and image_size must be positive, not {sizes}")
        if self.dtype not in DTYPES:
            raise UserError(f"batch: dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}", setting="dtype")

    def to_output_range(self, colour: np.ndarray) -> np.ndarray:
        """Colour matrices [N, 3, 4] for 0…255 → the same for the range of `dtype`."""
        if self.dtype == "uint8":
            return colour
        scaled = colour * (2 / 255)
        scaled[:, :, 3] -= 1
        return scaled


@dataclass(frozen=True)
class Unavailable:
    """Why a loader cannot be used here.

    Attributes:
            cause: what is missing or broken.
        remedy: what to do about it, "" if nothing is known.
        is_missing: whether a package is simply not installed, so that nothing is broken.
    """

    cause: str
    remedy: str = ""
    is_missing: bool = False

    def __str__(self) -> str:
        return f"{self.cause} ({self.remedy})" if self.remedy else self.cause


@dataclass(frozen=True)
class LoaderOptions:
    """How a loader works. None of it changes the batches.

    Raises:
        UserError: a value is out of range.

    Attributes:
        workers: decoding threads.
        prefetch: batches that are kept ready.
        device: where DALI decodes, "cpu" or "gpu".
        gpu: which GPU, if there are several.
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
            raise UserError(f"loader: device must be cpu or gpu, not {self.device!r}", setting="device")


class Loader(ABC):
    """One split, read epoch by epoch. Subclasses execute plans; they decide and draw nothing.

    Training datasets yield (images, labels), evaluation datasets (images, labels, weights). `BatchSpec` describes the
    images; labels are int32 [B] from 0; weights are float32 [B], 0 for the padding of the last batch.

    Attributes:
        name: as `open_loader` takes it.
        shards: the split.
        batch: the shape of this rank's batches.
        augment: what is drawn for each record.
        seed: of the order and the draws.
        rank: which part of each global batch this loader reads.
        world_size: the number of ranks.
        options: how it works.
        skipped: records that are left out, ascending; see `skip`.
        steps_per_epoch: batches of a whole epoch with no record skipped.
        dropped_records: records that do not fill a batch in an epoch with no record skipped.
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

    @property
    def device(self) -> str:
        """Where images are decoded: "cpu" or "gpu"."""
        return "cpu"

    def plan(self, epoch: int, start_step: int = 0) -> EpochPlan:
        """The plan that `epoch(epoch, start_step)` executes."""
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
        """Removes records from every plan from now on. Datasets that are open have to be opened again.

        `steps_per_epoch` does not change, so that steps keep their numbers: an epoch without these records ends sooner.
        """
        for opening in self._opened.values():
            _ = opening.cancel() or opening.exception()  # waits for one that has begun
        with memory_returned():
            self._opened.clear()
        self.skipped = tuple(sorted({*self.skipped, *records}))

    @abstractmethod
    def epoch(self, epoch: int, start_step: int = 0) -> "tf.data.Dataset":
        """Opens one epoch from `start_step` on.

        Read `plan(epoch).steps_per_epoch - start_step` batches: on a GPU, DALI's dataset does not end by itself. It can
        be read until the loader is closed, or opens an epoch that is neither the next nor the previous one.

        Args:
            epoch: from 0.
            start_step: steps that are left out.

        Returns:
            A dataset of (images, labels) or (images, labels, weights).
        """

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """Yields exactly the batches of an epoch from `start_step` on, for your own loops.

        A training loader opens the next epoch, and makes its first batch, while the last batches of this one are used.
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
            clear_frames(error.__traceback__)  # TensorFlow's frames hold the iterator
            raise
        finally:  # not after the loop: most callers do not read past the last batch
            with memory_returned():
                del iterator  # and its threads

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
