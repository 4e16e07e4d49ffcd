"""What a run does after a batch could not be read: it reads it again, skips corrupt records, or ends.

Skipped records are listed in the run's corrupt.jsonl, one JSON object a line: `split`, `shard`, `record` (its number in
the split), `offset` (its first byte in the shard), `reason`, `epoch`, `step`. The data set is not changed.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import Blocked, RunFailed, UserError, reason
from pipelines.loader import Loader
from pipelines.shards import remedies
from pipelines.shards.corrupt import CorruptRecord, find_corrupt, problem_of_shards
from pipelines.system.files import write_atomic
from pipelines.system.watch import NoAnswer

_log = logging.getLogger(__name__)

POLICIES = ("stop", "skip")
LIMIT = 100
MAX_TRIES = 3  # how often a step is read again if it failed although its records can be read and decoded


class SkippedRecords:
    """The corrupt records that a run skips, in all its splits, and the rule for new ones.

    Attributes:
        policy: "stop" ends the run at the first corrupt record, "skip" continues without it.
        limit: the most records that may be skipped.
        lines: the skipped records, one object each, as in corrupt.jsonl.
    """

    def __init__(self, policy: str = "stop", limit: int = LIMIT) -> None:
        if policy not in POLICIES:
            raise UserError(f"on_corrupt is one of {', '.join(POLICIES)}, not {policy!r}", setting="on_corrupt")
        self.policy = policy
        self.limit = limit
        self.lines: list[dict[str, Any]] = []
        self._path: Path | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def of(self, split: str) -> list[int]:
        """The numbers of the skipped records of a split."""
        return [line["record"] for line in self.lines if line["split"] == split]

    def keep_in(self, path: Path) -> None:
        """Keeps the list in this file from now on. A file that exists is replaced."""
        self._path = path
        if self.lines or path.exists():
            self._write()

    def add(self, found: Sequence[CorruptRecord], epoch: int, step: int) -> None:
        """Adds records that the run continues without.

        Args:
            found: corrupt records of one batch.
            epoch: where they were met.
            step: where they were met.

        Raises:
            RunFailed: the policy or the limit does not allow to skip them.
        """
        first, more = found[0], f" (and {len(found) - 1} more in its batch)" if len(found) > 1 else ""
        what = f"the record at byte {first.offset} (record {first.record} of {first.split}): {first.reason}{more}"
        quarantine = remedies.quarantine(Path(first.shard).parent)
        if self.policy == "stop":
            remedy = f"quarantine it with {quarantine}, or skip such records with on_corrupt=skip"
            raise RunFailed(what, path=first.shard, remedy=remedy, setting="on_corrupt")
        if len(self) + len(found) > self.limit:
            what += f"; {len(self)} were skipped before, and at most {self.limit} may be"
            remedy = f"check the disk, quarantine with {quarantine}, or choose a larger max_corrupt"
            raise RunFailed(what, path=first.shard, remedy=remedy, setting="max_corrupt")
        for record in found:
            _log.warning("skipped: %s", record)
        self.lines += [{**asdict(record), "epoch": epoch, "step": step} for record in found]
        if self._path:
            self._write()

    def _write(self) -> None:
        assert self._path
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        try:
            write_atomic(self._path, text.encode())
        except OSError as error:  # checkpoints contain the list as well
            _log.warning("%s: not written (%s); training continues", self._path, reason(error))


class Recovery:
    """Decides what happens after a step of one split could not be read.

    Args:
        loaders: those of this process, one for each of its replicas.
        corrupt: the corrupt records of the run; all splits share it.
        timeout: how many seconds a batch may take, for the message; 0 = no limit.

    Attributes:
        corrupt: as given.

    Raises:
        UserError: records may be skipped, but there are other processes, which would not know.
    """

    def __init__(self, loaders: Sequence[Loader], corrupt: SkippedRecords, timeout: float = 0.0) -> None:
        if len(loaders) < loaders[0].world_size and corrupt.policy == "skip":
            raise UserError(
                "several workers cannot skip corrupt records: one cannot tell the others",
                remedy="choose on_corrupt=stop, and quarantine the records that it finds",
                setting="on_corrupt",
            )
        self.corrupt = corrupt
        self._loaders = loaders
        self._shards = loaders[0].shards
        self._timeout = timeout

    def after(self, failure: Exception, epoch: int, step: int, tries: int, run_epoch: int | None = None) -> int:
        """Finds out why a step failed, and prepares the loaders for opening the epoch again at this step.

        Corrupt records are skipped if the policy allows it. If all records are good, the same ones are read again.

        Args:
            failure: what the loader raised, or `NoAnswer`.
            epoch: the epoch that was read.
            step: the step that failed.
            tries: how often this step was read again so far.
            run_epoch: the epoch of the run, for messages and corrupt.jsonl; None: `epoch`.

        Returns:
            `tries`, plus one if the same records are read again.

        Raises:
            RunFailed: the step cannot be read. It names the file, and the record if it is known.
            Blocked: a read has not returned.
        """
        run_epoch = epoch if run_epoch is None else run_epoch
        if found := self._find_corrupt(failure, epoch, step):
            self._continue_without(found, epoch, step, run_epoch)
            return tries
        self._try_again(failure, run_epoch, step, tries + 1)
        return tries + 1

    def skip(self, records: Iterable[int]) -> None:
        """Takes records out of all epochs from now on; see `Loader.skip`."""
        records = tuple(records)
        for loader in self._loaders:
            loader.skip(records)

    def skip_listed(self) -> None:
        """Takes the records out that `corrupt` lists for this split."""
        self.skip(self.corrupt.of(self._shards.split))

    def _find_corrupt(self, failure: Exception, epoch: int, step: int) -> list[CorruptRecord]:
        """The records that made a step fail; none if all are good. Raises `RunFailed` if a shard cannot be read.

        It reads the whole batch and waits through transient read errors, so these are over when it returns.
        """
        parts = [loader.plan(epoch, step).records_between(0, loader.batch.batch_size) for loader in self._loaders]
        numbers = list(dict.fromkeys(np.concatenate(parts).tolist()))  # each once, if records are repeated
        try:
            problem = problem_of_shards(self._shards, numbers)
            if isinstance(failure, NoAnswer):
                if problem:
                    raise Blocked(problem.what, path=problem.path, remedy=problem.remedy) from failure
                late = f"did not arrive within {self._timeout:g} seconds, but its shards can be read"
                what, remedy = f"{self._name(epoch, step)} {late}", "choose a longer data_timeout"
                raise Blocked(what, remedy=remedy, setting="data_timeout") from failure
            if problem:
                raise RunFailed(problem.what, path=problem.path, remedy=problem.remedy) from failure
            return self._corrupt_among(numbers)
        except OSError as error:
            raise RunFailed(reason(error), path=error.filename) from failure

    def _corrupt_among(self, numbers: Iterable[int]) -> list[CorruptRecord]:
        """`find_corrupt`. Raises `RunFailed` if an index is wrong: the records are good, so none is skipped."""
        try:
            return find_corrupt(self._shards, numbers)
        except UserError as error:
            raise RunFailed(error.what, path=error.path, remedy=error.remedy) from None

    def _continue_without(self, found: list[CorruptRecord], epoch: int, step: int, run_epoch: int) -> None:
        """Skips the records. Raises `RunFailed` if that is not allowed, or if too few are left for a batch."""
        self.corrupt.add(found, run_epoch, step)
        self.skip(record.record for record in found)
        try:
            self._loaders[0].plan(epoch, step)
        except UserError as error:
            left = np.setdiff1d(self._shards.usable, self._loaders[0].skipped)
            if found := self._corrupt_among(left):  # no step would read them, so they would not be listed
                self._continue_without(found, epoch, step, run_epoch)
            raise RunFailed(error.what, path=error.path, remedy=error.remedy, setting=error.setting) from None

    def _try_again(self, failure: Exception, epoch: int, step: int, number: int) -> None:
        """Has the step read again, since its records are good. Raises `RunFailed` after `MAX_TRIES`."""
        name, reason = self._name(epoch, step), reason_of(failure)
        if number > MAX_TRIES:
            raise RunFailed(f"{name} cannot be read: {reason}") from failure
        what = f"failed ({reason}), but all its records can be read; reading it again, try {number} of {MAX_TRIES}"
        _log.warning("%s %s", name, what)
        self.skip([])  # drops what was opened ahead: it may have failed as well

    def _name(self, epoch: int, step: int) -> str:
        return f"{self._loaders[0].name}: epoch {epoch}, step {step} of the {self._shards.split} split"


def reason_of(failure: Exception) -> str:
    """The one line that says why, out of the pages that TensorFlow and DALI print."""
    lines = [line.strip() for line in getattr(failure, "message", str(failure)).splitlines() if line.strip()]
    if "encountered:" in lines[:-1]:  # DALI: after its traceback
        return lines[lines.index("encountered:") + 1]
    return lines[0] if lines else type(failure).__name__
