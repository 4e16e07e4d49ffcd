"""Batches without a pause between epochs: a pipeline is used for many short epochs, or for a part of a long one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from traceback import clear_frames
from typing import Any

import numpy as np

from pipelines.plan import EpochPlan
from pipelines.system.memory import memory_returned
from pipelines.system.worker import Worker

UNBOUNDED = 1 << 62  # steps
# A short first segment, so that the first batch comes soon. A new pipeline costs as much as the decoding of some
# batches, and the plan of the next one is written while this one is read: segments grow, but not at once.
_FIRST_STEPS, _FIRST_POSITIONS, _GROWTH = 192, 16_384, 4
_OPEN_AHEAD, _OPEN_SHARE = 32, 16  # the next pipeline is opened 32 steps, or 1/16 of a segment, before it is needed


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive steps of consecutive epochs, which one pipeline reads. Steps are counted from the start of epoch 0.

    Attributes:
        plan: the plan of a whole epoch, of any one; all epochs have its number of steps.
        first: the first step.
        steps: the number of steps.
        latest: the plan of the epoch that was planned last, shared by the segments of a stream: a long epoch has many
            segments, and is shuffled once.
    """

    plan: EpochPlan
    first: int
    steps: int
    latest: list[EpochPlan] = field(default_factory=list)

    @classmethod
    def whole(cls, plan: EpochPlan) -> "Segment":
        """All steps of one epoch."""
        return cls(plan, plan.epoch * plan.steps_per_epoch, plan.steps_per_epoch)

    @property
    def positions(self) -> int:
        """The number of records that are read, padding included."""
        return self.steps * self.plan.batch_size

    def parts(self) -> Iterator[tuple[EpochPlan, int, int]]:
        """(the plan of an epoch, first position in it, position after the last), epoch by epoch."""
        step, end = self.first, self.first + self.steps
        while step < end:
            epoch, start = divmod(step, self.plan.steps_per_epoch)
            stop = min(self.plan.steps_per_epoch, start + end - step)
            yield self._of_epoch(epoch), start * self.plan.batch_size, stop * self.plan.batch_size
            step += stop - start

    def _of_epoch(self, epoch: int) -> EpochPlan:
        if epoch == self.plan.epoch or self.plan.augment.is_evaluation:  # an evaluation is the same every time
            return self.plan
        if not self.latest or self.latest[0].epoch != epoch:
            self.latest[:] = [replace(self.plan, epoch=epoch)]
        return self.latest[0]

    @cached_property
    def records(self) -> np.ndarray:
        """int64 [positions]: the record at each position."""
        return np.concatenate([plan.records_between(start, stop) for plan, start, stop in self.parts()])


class Pipeline(ABC):
    """A segment that can be opened once. A subclass begins slow work for it when it is made."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment

    @abstractmethod
    def open(self) -> Iterator[Any]:
        """The batches of the segment."""

    def begin(self) -> Iterator[Any]:
        """The batches of the segment, the first one already there."""
        iterator = self.open()
        return chain([next(iterator)], iterator)

    def hurry(self) -> None:  # noqa: B027 most pipelines have no slow work
        """Makes the slow work fast, because the pipeline is needed soon."""

    @abstractmethod
    def close(self) -> None:
        """Removes what was made for the segment; its batches are not read any more."""


class Stream:
    """The batches from one step on, epoch after epoch.

    Near the end of a segment the worker opens the next pipeline, up to its first batch; then it closes the old one.
    Neither makes a batch late. Nothing here waits for the worker, except the next batch itself: a stream may be closed
    in any thread, by the garbage collector, too.
    """

    def __init__(
        self,
        segment: Segment,
        make: Callable[[Segment], Pipeline],
        worker: Worker,
        most_steps: int = UNBOUNDED,
        follow: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Opens nothing yet.

        Args:
            segment: what to read.
            make: the pipeline of a part of it.
            worker: opens and closes pipelines.
            most_steps: the most steps that one pipeline reads.
            follow: called with each step before it is read; see `pipelines.storage.fetcher`.
        """
        self.position = segment.first
        self._stop = segment.first + segment.steps
        self.plan = segment.plan
        self._whole = segment
        self._make = make
        self._worker = worker
        self._most_steps = most_steps
        self._follow = follow
        self._size = max(1, min(_FIRST_STEPS, _FIRST_POSITIONS // segment.plan.batch_size))
        self._left = 0  # steps of the current pipeline
        self._ahead = self._half = 0
        self._current: Pipeline | None = None
        self._iterator: Iterator[Any] | None = None
        self._next: Pipeline | None = None
        self._opening: Future[Iterator[Any]] | None = None

    def next(self) -> Any:
        """The next batch; raises `StopIteration` at the end, or what the pipeline raises, which ends the stream."""
        if self.position >= self._stop:
            raise StopIteration
        self._follow(self.position)
        try:
            if self._left == 0:
                self._change_pipeline()
            assert self._iterator is not None
            batch = next(self._iterator)
        except BaseException as error:
            clear_frames(error.__traceback__)  # TensorFlow's frames hold the iterator
            self.close()
            raise
        self.position += 1
        self._left -= 1
        if self._next is not None:
            if self._left == self._half:
                self._next.hurry()
            if self._left == self._ahead:
                self._opening = self._worker.submit(self._next.begin)
        if self.position == self._stop:
            self.close()
        return batch

    def close(self) -> None:
        """Ends the pipelines. A stream that is read again continues where it was."""
        self._left = 0
        opening, self._opening = self._opening, None
        ended = [pipeline for pipeline in (self._current, self._next) if pipeline is not None]
        self._current = self._next = None
        with memory_returned():
            self._iterator = None
        if ended:
            self._worker.submit(_end, ended, [opening])

    def _change_pipeline(self) -> None:
        following = self._next or self._make(self._segment(self.position))
        opening = self._opening or self._worker.submit(following.begin)
        self._opening = None
        if self._current is not None:
            self._worker.submit(_end, [self._current], [self._iterator])
        self._current, self._next, self._iterator = following, None, None
        self._iterator = opening.result()
        segment = following.segment
        self._left = segment.steps
        self._ahead = min(segment.steps - 1, max(_OPEN_AHEAD, segment.steps // _OPEN_SHARE))
        self._half = max(self._ahead, segment.steps // 2)
        if (end := segment.first + segment.steps) < self._stop:
            self._next = self._make(self._segment(end))

    def _segment(self, first: int) -> Segment:
        """The segment that begins at a step; each is longer than the one before."""
        steps = min(self._size, self._most_steps, self._stop - first)
        self._size = min(self._size * _GROWTH, self._most_steps)
        return replace(self._whole, first=first, steps=steps)


def _end(pipelines: list[Pipeline], held: list[Any]) -> None:
    """Closes pipelines, after what was opened of them is gone."""
    with memory_returned():
        held.clear()
    for pipeline in pipelines:
        pipeline.close()
