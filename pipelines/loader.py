"""What every loader promises: an epoch of the plan as a `tf.data.Dataset` of batches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from pipelines.augment import AugmentSpec
from pipelines.errors import UserError
from pipelines.plan import EpochPlan
from pipelines.shards.shard_set import ShardSet
from pipelines.stream import UNBOUNDED, Pipeline, Segment, Stream

if TYPE_CHECKING:
    import tensorflow as tf

DTYPES = ("float32", "float16", "uint8")
DEVICES = ("auto", "cpu", "gpu")


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
    """

    workers: int
    prefetch: int = 2
    device: str = "cpu"
    gpu: int = 0

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
    _most_steps = UNBOUNDED  # that one pipeline reads

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
        self._opener = ThreadPoolExecutor(1, "kimagenet-open")
        self._streams: WeakSet[Stream] = WeakSet()
        self._waiting: Stream | None = None  # at the start of an epoch, its pipeline ready

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
        """Takes records out of every plan from now on. What was opened before has to be opened again.

        `steps_per_epoch` stays what it was, so that steps keep their numbers: an epoch that lacks records ends sooner.
        """
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None
        self.skipped = tuple(sorted({*self.skipped, *records}))

    def epoch(self, epoch: int, start_step: int = 0) -> "tf.data.Dataset":
        """The batches of one epoch from `start_step` on.

        Its `steps_per_epoch - start_step` batches (fewer where records are skipped) stay readable until the loader is
        closed. On a GPU, DALI's dataset has no end of its own: read so many and no more.
        """
        steps = self.plan(epoch).steps_per_epoch
        return self._dataset(Segment(self.plan(0), epoch * steps + start_step, max(0, steps - start_step)))

    def epochs(self, first: int, count: int) -> "tf.data.Dataset":
        """The batches of several epochs, each with its own order and draws, as `epoch` gives them.

        For one call of Keras: `model.fit(loader.epochs(0, n), epochs=n, steps_per_epoch=loader.steps_per_epoch)`.

        Args:
            first: the first epoch.
            count: the number of epochs.
        """
        steps = self.plan(first).steps_per_epoch
        return self._dataset(Segment(self.plan(0), first * steps, count * steps))

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """Exactly the batches that remain of an epoch, one by one: for loops of one's own.

        The pipeline stays open at the end of the epoch, with the first batches of the next one ready: read that next.
        An evaluation's next epoch is the same one.
        """
        steps = self.plan(epoch).steps_per_epoch
        stream = self._stream_at(epoch * steps + start_step)
        is_complete = False
        try:
            for step in range(start_step, steps):
                batch = stream.next()
                if is_complete := step + 1 == steps:  # now, since most readers do not ask for more than there is
                    self._waiting = stream
                yield batch
                del batch
        finally:
            if not is_complete:
                stream.close()

    def predictions(self, model: Any) -> tuple[np.ndarray, np.ndarray]:
        """What a Keras model predicts for each record of an evaluation split, without the padding of the last batch.

        Args:
            model: has one output.

        Returns:
            predictions [N, …], in the order of the records, and labels int32 [N].
        """
        predicted, found = [], []
        for images, labels, weights in self.batches(0):
            is_record = weights.numpy() > 0
            predicted.append(model.predict_on_batch(images)[is_record])
            found.append(labels.numpy()[is_record])
        return np.concatenate(predicted), np.concatenate(found)

    def close(self) -> None:
        """Stops background work and removes temporary files."""
        for stream in list(self._streams):
            stream.close()
        self._waiting = None
        self._opener.shutdown(wait=True, cancel_futures=True)

    @abstractmethod
    def _dataset(self, segment: Segment) -> "tf.data.Dataset":
        """The batches of a segment."""

    def _pipeline(self, segment: Segment) -> Pipeline:
        """What a stream reads a part of its steps from."""
        return _DatasetPipeline(segment, self._dataset)

    def _stream(self, segment: Segment) -> Stream:
        stream = Stream(segment, self._pipeline, self._opener, self._most_steps)
        self._streams.add(stream)
        return stream

    def _stream_at(self, first: int) -> Stream:
        """The stream that waits at a step, or a new one."""
        stream, self._waiting = self._waiting, None
        if stream is not None:
            apart = stream.position - first
            if apart == 0 or (self.augment.is_evaluation and apart % self.plan(0).steps_per_epoch == 0):
                return stream
            stream.close()
        return self._stream(Segment(self.plan(0), first, UNBOUNDED))

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _DatasetPipeline(Pipeline):
    """A segment as a dataset, with nothing to prepare."""

    def __init__(self, segment: Segment, dataset: "Callable[[Segment], tf.data.Dataset]") -> None:
        super().__init__(segment)
        self._dataset = dataset

    def open(self) -> Iterator[Any]:
        return iter(self._dataset(self.segment))

    def close(self) -> None:
        pass
