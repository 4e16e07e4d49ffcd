"""The contract of all loaders: an epoch of the plan as a `tf.data.Dataset` of batches."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from pipelines.augment import AugmentSpec
from pipelines.decoding import DecoderOptions
from pipelines.errors import UserError
from pipelines.order.spec import ShuffleSpec
from pipelines.plan import EpochPlan
from pipelines.ranges import check_ranges, within
from pipelines.shards.shard_set import ShardSet
from pipelines.storage.fetcher import Fetcher
from pipelines.storage.lead import Lead
from pipelines.storage.open_files import most_files
from pipelines.stream import UNBOUNDED, Pipeline, Segment, Stream
from pipelines.system.limits import memory_bytes
from pipelines.system.worker import Worker

if TYPE_CHECKING:
    import tensorflow as tf

_log = logging.getLogger(__name__)

DTYPES = ("float32", "float16", "uint8")
DEVICES = ("auto", "cpu", "gpu")
READ_AHEAD = 2048  # records


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
        read_ahead: the most records that are fetched from storage before they are needed; 0: none.
    """

    workers: int
    prefetch: int = 2
    device: str = "cpu"
    gpu: int = 0
    decoder: DecoderOptions = field(default_factory=DecoderOptions)
    read_ahead: int = field(default=READ_AHEAD, metadata=within(at_least=0, unit="records"))

    def __post_init__(self) -> None:
        check_ranges(self)
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
        shuffle: how the records are shuffled.
        repeats: how often each record of a global batch occurs in it.
        skipped: records that are left out, ascending; see `skip`.
        steps_per_epoch: batches of a whole epoch with no record skipped.
        dropped_records: records that do not fill a batch in an epoch with no record skipped.
    """

    name: str
    _most_steps = UNBOUNDED  # that one pipeline reads
    _reads_shards = True

    def __init__(
        self,
        shards: ShardSet,
        batch: BatchSpec,
        augment: AugmentSpec,
        seed: int,
        rank: int,
        world_size: int,
        options: LoaderOptions,
        shuffle: ShuffleSpec | None = None,
        repeats: int = 1,
    ) -> None:
        self.shards = shards
        self.batch = batch
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.options = options
        self.shuffle = shuffle or ShuffleSpec()
        self.repeats = repeats
        self.skipped: tuple[int, ...] = ()
        self.steps_per_epoch = self.plan(0).steps_per_epoch
        self.dropped_records = self.plan(0).dropped_records
        self._opener = Worker("kimagenet-open")
        self._fetcher = self._make_fetcher()
        self._is_closed = self._has_warned = False
        self._streams: WeakSet[Stream] = WeakSet()
        self._waiting: Stream | None = None  # at the start of an epoch, its pipeline ready

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
            shuffle=self.shuffle,
            skipped=self.skipped,
            repeats=self.repeats,
        )

    def skip(self, records: Iterable[int]) -> None:
        """Removes records from every plan from now on. Datasets that are open have to be opened again.

        `steps_per_epoch` does not change, so that steps keep their numbers: an epoch without these records ends sooner.
        """
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None
        self.skipped = tuple(sorted({*self.skipped, *records}))

    def epoch(self, epoch: int, start_step: int = 0) -> "tf.data.Dataset":
        """Opens one epoch from `start_step` on.

        Read `plan(epoch).steps_per_epoch - start_step` batches: on a GPU, DALI's dataset does not end by itself. It can
        be read until the loader is closed. On a GPU, records are not fetched ahead here: read `batches` if the data is
        larger than memory.

        Args:
            epoch: from 0.
            start_step: steps that are left out.

        Returns:
            A dataset of (images, labels) or (images, labels, weights).
        """
        self._warn_of_tones()
        steps = self.plan(epoch).steps_per_epoch
        return self.make_dataset(Segment(self.plan(0), epoch * steps + start_step, max(0, steps - start_step)))

    def epochs(self, first: int, count: int) -> "tf.data.Dataset":
        """Opens several epochs, each with its own order and draws, as one dataset for one call of Keras.

        `model.fit(loader.epochs(0, n), epochs=n, steps_per_epoch=loader.steps_per_epoch, shuffle=False)`

        Args:
            first: the first epoch, from 0.
            count: the number of epochs.

        Returns:
            A dataset of the same elements as that of `epoch`.

        Raises:
            UserError: there is no such epoch.
        """
        if first < 0 or count < 1:
            raise UserError(f"loader: first must be 0 or more and count 1 or more, not {first} and {count}")
        self._warn_of_tones()
        steps = self.plan(first).steps_per_epoch
        return self.make_dataset(Segment(self.plan(0), first * steps, count * steps))

    def _warn_of_tones(self) -> None:
        """Says once that images of a dataset lack a part of their augmentation."""
        if self.augment.has_tones and not self._has_warned:
            self._has_warned = True
            what = "a part of this augmentation is left to the training device, so datasets do not have it"
            _log.warning("loader %s: %s: apply `tones` to `batches` with kimagenet.training.tones", self.name, what)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """Yields exactly the batches of an epoch from `start_step` on, for your own loops.

        The pipeline stays open at the end of the epoch, with the first batches of the next epoch ready.
        """
        steps = self.plan(epoch).steps_per_epoch
        stream = self._stream_at(epoch * steps + start_step)
        is_complete = False
        try:
            for step in range(start_step, steps):
                batch = stream.next()
                if step + 1 == steps:  # before the yield: most callers do not read past the last batch
                    is_complete = self._keep(stream)
                yield batch
                del batch
        finally:
            if not is_complete:
                stream.close()

    def tones(self, epoch: int, start_step: int = 0) -> Iterator[np.ndarray]:
        """What is left to the training device, for each of the `batches` of an epoch from `start_step` on.

        Yields:
            float32 [batch_size, K, 2]; see `AugmentSpec.tones`. K is 0 if nothing is left to it.
        """
        plan = self.plan(epoch, start_step)
        for start in range(0, (plan.steps_per_epoch - start_step) * plan.batch_size, plan.batch_size):
            yield plan.tones(start, start + plan.batch_size)

    def predictions(self, model: Any) -> tuple[np.ndarray, np.ndarray]:
        """Predicts every record of an evaluation split once, without the padding of the last batch.

        Args:
            model: a Keras model with one output.

        Returns:
            predictions [N, …], in the order of the records, and labels int32 [N].

        Raises:
            UserError: the loader is not one of a whole evaluation split with images in [-1, 1].
        """
        if not self.augment.is_evaluation or self.world_size > 1 or self.batch.dtype == "uint8":
            what = "loader: predictions need one loader of an evaluation, with float32 or float16 images"
            raise UserError(what, remedy="open it with AugmentSpec.evaluation()")
        predicted, found = [], []
        for images, labels, weights in self.batches(0):
            is_record = weights.numpy() > 0
            predicted.append(model.predict_on_batch(images)[is_record])
            found.append(labels.numpy()[is_record])
        return np.concatenate(predicted), np.concatenate(found)

    def close(self) -> None:
        """Stops background work and removes temporary files."""
        self._is_closed = True
        for stream in list(self._streams):
            stream.close()
        self._waiting = None
        if self._fetcher is not None:
            self._fetcher.close()
        self._opener.close()

    @abstractmethod
    def make_dataset(self, segment: Segment) -> "tf.data.Dataset":
        """The batches of a segment."""

    def _pipeline(self, segment: Segment) -> Pipeline:
        """Makes what a stream reads a segment from."""
        return DatasetPipeline(segment, self.make_dataset)

    def _stream(self, segment: Segment) -> Stream:
        if self._is_closed:
            raise UserError("loader: it is closed", remedy="open another one")
        stream = Stream(segment, self._pipeline, self._opener, self._most_steps, self._follow(segment))
        self._streams.add(stream)
        return stream

    def _make_fetcher(self) -> Fetcher | None:
        if not self._reads_shards or not self.options.read_ahead:
            return None
        lead = Lead.of(self.plan(0), self.options.read_ahead, self.options.prefetch, memory_bytes())
        return Fetcher(self.shards, lead, most_files(len(self.shards.paths), self.world_size))

    def _follow(self, segment: Segment) -> Callable[[int], object]:
        """What the reader of a segment calls with each step, so that the next ones are fetched."""
        return (lambda _: None) if self._fetcher is None else self._fetcher.follow(segment)

    def _stream_at(self, first: int) -> Stream:
        """The stream that waits at a step, or a new one."""
        stream, self._waiting = self._waiting, None
        if stream is not None:
            apart = stream.position - first
            if apart == 0 or (self.augment.is_evaluation and apart % self.plan(0).steps_per_epoch == 0):
                return stream
            stream.close()
        return self._stream(Segment(self.plan(0), first, UNBOUNDED))

    def _keep(self, stream: Stream) -> bool:
        """Lets a stream wait at the end of an epoch, unless its plan is an old one; whether it waits."""
        if self._is_closed or stream.plan.skipped != self.skipped:
            return False
        if self._waiting is not None:
            self._waiting.close()
        self._waiting = stream
        return True

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DatasetPipeline(Pipeline):
    """A segment as a dataset, with nothing to prepare."""

    def __init__(self, segment: Segment, dataset: "Callable[[Segment], tf.data.Dataset]") -> None:
        super().__init__(segment)
        self._dataset = dataset

    def open(self) -> Iterator[Any]:
        return iter(self._dataset(self.segment))

    def close(self) -> None:
        pass
