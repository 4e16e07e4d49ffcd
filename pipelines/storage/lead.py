"""How far the fetcher is ahead of a reader."""

from dataclasses import dataclass

import numpy as np

from pipelines.plan import EpochPlan

_MOST_BYTES = 256 << 20
_SHARE_OF_MEMORY = 16  # the lead takes at most a sixteenth of the memory, which page cache is part of
_JOBS = 4  # a job fetches a quarter of the lead


@dataclass(frozen=True)
class Lead:
    """The lead over a reader, in steps of its plan.

    Attributes:
        steps: the most steps that are fetched and not yet read.
        job: steps that are fetched at a time.
        margin: steps that the loader itself may have read, but not yet given to its reader.
    """

    steps: int
    job: int
    margin: int

    @classmethod
    def of(cls, plan: EpochPlan, records: int, prefetch: int, memory: int) -> "Lead":
        """The lead for a plan.

        Args:
            plan: says the records of a batch, and through its shards their size.
            records: the most records.
            prefetch: batches that the loader itself keeps ready. The lead has at least two more.
            memory: bytes that the process may use.
        """
        mean = float(np.mean(plan.shards.lengths))
        fitting = min(records, int(min(_MOST_BYTES, memory // _SHARE_OF_MEMORY) / mean))
        steps = max(prefetch + 2, fitting // plan.batch_size)
        return cls(steps, max(1, steps // _JOBS), prefetch + 2)

    def following(self, step: int, fetched: int, stop: int) -> range:
        """The steps to fetch now, none if there is nothing to do.

        Args:
            step: the one that is read next.
            fetched: the step after the last one that was fetched. If the reader is after it, or so far before it that
                it has begun again, fetching begins again at the reader's step.
            stop: the step after the last one that will be read.
        """
        if not 0 <= fetched - step <= 2 * self.steps:
            fetched = step
        if fetched + self.job > step + self.steps:
            return range(0)
        return range(fetched, min(fetched + self.job, stop))
