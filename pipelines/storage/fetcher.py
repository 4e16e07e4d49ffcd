"""The fetcher walks through the plan ahead of a loader, and brings the coming records into memory.

It changes nothing that is read. If it fails or is late, a loader waits for the storage as if there were no fetcher.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Event, Lock

import numpy as np

from pipelines.errors import reason
from pipelines.shards.shard_set import ShardSet
from pipelines.storage import ways
from pipelines.storage.lead import Lead
from pipelines.storage.open_files import OpenFiles
from pipelines.storage.page_cache import is_cached
from pipelines.storage.spans import Span, spans_of, stdio_buffer
from pipelines.storage.ways import Trial, Way
from pipelines.stream import Segment
from pipelines.system.worker import Worker

_READERS = 16  # threads that read, where the kernel does not fetch
_LOOKED_AT, _TRIED = 16, 4  # spans
_IDLE_SECONDS = 20.0  # after which the records that were fetched for a reader may have left the memory
_CLOSE_SECONDS = 1.0  # how long `close` waits for a call to a file system that does not answer

_log = logging.getLogger(__name__)


class Fetcher:
    """Fetches for one loader. Threads start when something is fetched.

    One thread plans and asks the kernel. Only where that does nothing, other threads read.
    """

    def __init__(self, shards: ShardSet, lead: Lead, most_files: int) -> None:
        """Opens nothing yet.

        Args:
            shards: the split.
            lead: how far to be ahead of each reader.
            most_files: how many files each thread may keep open, if there is only the first one.
        """
        self.lead = lead
        self.trial = Trial()
        self.shards = shards
        self._closing = Event()
        self._has_complained = False
        self._first = _Hand("kimagenet-fetch", self._closing, most_files)
        few = max(1, most_files // _READERS)
        names = [f"kimagenet-fetch-{number}" for number in range(_READERS)]
        self._readers = [_Hand(name, self._closing, few, os.POSIX_FADV_RANDOM) for name in names]

    @property
    def is_working(self) -> bool:
        """Whether anything is fetched."""
        return not self._closing.is_set() and self.trial.way is not Way.NONE

    def follow(self, segment: Segment) -> Callable[[int], None]:
        """Begins to fetch for a reader of a segment.

        Returns:
            A function that the reader calls with each step before it reads it. It returns at once.
        """
        return _Walk(self, segment).at

    def close(self) -> None:
        """Ends the threads and closes the files. A call that a file system does not answer is left to itself."""
        self._closing.set()
        until = time.monotonic() + _CLOSE_SECONDS
        for hand in (self._first, *self._readers):
            hand.close(max(0.0, until - time.monotonic()))

    def submit(self, job: Callable[[], None]) -> None:
        """Does a job in the first thread. For walks."""
        self._first.worker.submit(self._guarded, job)

    @cached_property
    def buffer(self) -> int:
        """See `stdio_buffer`. Only the first thread asks for it."""
        return stdio_buffer(self.shards.paths[0])

    def fetch(self, spans: Sequence[Span]) -> None:
        """Fetches spans. Only the first thread calls this."""
        if self.trial.way is Way.ADVISE:
            self._first.fetch(self.shards, spans, ways.advise, self.complain)
        elif self.trial.way is Way.READ:
            parts = [(hand, spans[number::_READERS]) for number, hand in enumerate(self._readers)]
            jobs = [
                hand.worker.submit(hand.fetch, self.shards, part, ways.read, self.complain)
                for hand, part in parts
                if part
            ]
            for job in jobs:
                job.result()

    def are_cached(self, spans: Sequence[Span]) -> list[bool]:
        """Whether each span is in memory. One of which nobody can tell is said to be."""
        return [self._first.is_cached(self.shards, span) for span in spans]

    def judge(self, *, has_fetched: bool) -> None:
        """Takes note of what a trial showed."""
        before, self.trial = self.trial.way, self.trial.after(has_fetched=has_fetched)
        if self.trial.way is not before and self.trial.way is Way.NONE:
            self.complain("its file system keeps nothing in memory")

    def complain(self, why: str) -> None:
        """Says once that records are not fetched in time."""
        if not self._has_complained and not self._closing.is_set():
            self._has_complained = True
            folder = self.shards.paths[0].parent
            _log.warning(
                "%s: records are not fetched ahead (%s), so that reading may wait for the storage", folder, why
            )

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self.complain(f"{type(error).__name__}: {error}")


class _Hand:
    """A thread with its own open files: none is closed while another thread uses it."""

    def __init__(self, name: str, closing: Event, most_files: int, advice: int = os.POSIX_FADV_SEQUENTIAL) -> None:
        self.worker = Worker(name, closing.set)
        self._files = OpenFiles(most_files, advice)
        self._closing = closing

    def fetch(
        self,
        shards: ShardSet,
        spans: Sequence[Span],
        act: Callable[[int, int, int], None],
        complain: Callable[[str], None],
    ) -> None:
        """Does `act(descriptor, first byte, length)` for each piece of the spans. Reports what fails, and continues."""
        for span in spans:
            try:
                file = self._files.open(shards.paths[span.shard])
                for first, length in span.pieces(file.largest):
                    if self._closing.is_set():
                        return
                    act(file.descriptor, first, length)
            except OSError as error:
                complain(f"{shards.paths[span.shard].name}: {reason(error)}")

    def is_cached(self, shards: ShardSet, span: Span) -> bool:
        try:
            return is_cached(self._files.open(shards.paths[span.shard]).descriptor, span.first, span.end)
        except (OSError, ValueError):
            return True

    def close(self, seconds: float) -> None:
        if self.worker.close(seconds):
            self._files.close()  # else it is closed when the call returns, and nothing refers to it any more


@dataclass(frozen=True)
class _Probe:
    """Spans that were not in memory and were fetched before all others of their job.

    Attributes:
        spans: the spans.
        look_at: the step of the reader from which on they must be there.
        until: the step from which on the loader may have read them itself.
    """

    spans: list[Span]
    look_at: int
    until: int


class _Walk:
    """The fetcher's way ahead of one reader. At most one job at a time is under way."""

    def __init__(self, fetcher: Fetcher, segment: Segment) -> None:
        # Its own plans: two threads must not share what these remember.
        self._segment = replace(segment, plan=replace(segment.plan), latest=[])
        self._stop = segment.first + segment.steps
        self._is_known = np.zeros(segment.plan.shards.num_records, bool)  # the first record of what was fetched
        self._fetcher = fetcher
        self._step = self._fetched = segment.first
        self._told = time.monotonic()
        self._is_stale = False  # what was fetched has to be fetched again
        self._late = 0
        self._probe: _Probe | None = None
        self._under_way = Lock()

    def at(self, step: int) -> None:
        """The reader is about to read a step."""
        before, self._told = self._told, time.monotonic()
        if self._told - before > _IDLE_SECONDS:  # as a training's reader is while the model is evaluated
            self._is_stale = True
        self._step = step
        self._late = 0 if step < self._fetched else self._late + 1
        if self._late > self._fetcher.lead.steps:
            self._fetcher.complain("the storage or this process is too slow")
        self._begin_job()

    def _begin_job(self) -> None:
        if self._following() and self._under_way.acquire(blocking=False):
            self._fetcher.submit(self._job)

    def _following(self) -> range:
        if not self._fetcher.is_working:
            return range(0)
        fetched = self._step if self._is_stale else self._fetched
        return self._fetcher.lead.following(self._step, fetched, self._stop)

    def _job(self) -> None:
        """Fetches the next steps. If it raises, the walk ends."""
        if steps := self._following():
            self._look()
            runs, places = self._unknown_runs(steps)
            spans = spans_of(self._fetcher.shards, runs, self._fetcher.buffer)
            self._fetcher.fetch(self._with_probe(spans, steps.start + places // self._segment.plan.batch_size))
            self._fetched, self._is_stale = steps.stop, False
        self._under_way.release()
        self._begin_job()  # the lead is longer than what one job fetches

    def _unknown_runs(self, steps: range) -> tuple[np.ndarray, np.ndarray]:
        """The runs of records of some steps that were not fetched before in this epoch. A run is a block of the order.

        Returns:
            int [N, 2]: the first and the last record of each run; int [N]: its place among all records of the steps.
        """
        if steps.start != self._fetched:
            self._is_known[:] = False
        found, places, passed = [], [], 0
        for plan, start, stop in replace(self._segment, first=steps.start, steps=len(steps)).parts():
            if start == 0:
                self._is_known[:] = False  # long ago, and another epoch may have other runs
            records = plan.records_between(start, stop)
            runs = plan.together(records)
            unknown = np.flatnonzero(~self._is_known[runs[:, 0]])
            self._is_known[runs[unknown, 0]] = True
            found.append(runs[unknown])
            places.append(passed + unknown)
            passed += stop - start
        return np.concatenate(found), np.concatenate(places)

    def _with_probe(self, spans: list[Span], steps: np.ndarray) -> list[Span]:
        """The spans in the order in which to fetch them: first some of the last, if it is not known if that works.

        Args:
            spans: in the order of their need.
            steps: int, the step that needs each of the runs that the spans were made of.
        """
        if self._fetcher.trial.is_proven or self._probe is not None:
            return spans
        last = spans[-_LOOKED_AT:]
        absent = [span for span, there in zip(last, self._fetcher.are_cached(last), strict=True) if not there]
        if probed := absent[-_TRIED:]:
            until = int(steps[probed[0].place]) - self._fetcher.lead.margin
            self._probe = _Probe(probed, (self._step + until + 1) // 2, until)
        return probed + [span for span in spans if span not in probed]

    def _look(self) -> None:
        """Looks whether what was fetched on trial is in memory."""
        probe = self._probe
        if probe is None or self._step < probe.look_at:
            return
        has_fetched = any(self._fetcher.are_cached(probe.spans))
        if not has_fetched or self._step < probe.until:
            self._fetcher.judge(has_fetched=has_fetched)
        self._probe = None
