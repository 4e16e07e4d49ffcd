"""What a run does about records that turn out to be corrupt: it stops and names them, or goes on without them.

Those it goes on without are listed in the run's corrupt.jsonl, one JSON object a line: `split`, `shard`, `record` (its
number in the split), `offset` (its first byte in the shard), `reason`, `epoch`, `step`. The data set is not changed.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.errors import RunFailed
from pipelines.shards.corrupt import CorruptRecord
from pipelines.system.files import write_atomic

logger = logging.getLogger(__name__)

POLICIES = ("stop", "skip")
LIMIT = 100


class CorruptRecords:
    """The corrupt records of a run, of all its splits, and the rule for new ones.

    `policy` is one of `POLICIES`; with "skip", more than `limit` records end the run all the same.
    """

    def __init__(self, policy: str = "stop", limit: int = LIMIT) -> None:
        self.policy = policy
        self.limit = limit
        self.lines: list[dict[str, Any]] = []
        self._path: Path | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def of(self, split: str) -> list[int]:
        """The records of a split that are skipped."""
        return [line["record"] for line in self.lines if line["split"] == split]

    def keep_in(self, path: Path) -> None:
        """From now on the list is kept in this file. One that is there gives way to what is known."""
        self._path = path
        if self.lines or path.exists():
            self._write()

    def judge(self, found: Sequence[CorruptRecord], epoch: int, step: int) -> None:
        """Returns if the run may go on without the records, which are listed then; else raises `RunFailed`."""
        first, more = found[0], f" (and {len(found) - 1} more in its batch)" if len(found) > 1 else ""
        folder = Path(first.shard).parent
        for_good = f"quarantine with `python -m tools.check_shards {folder} --quarantine`"
        if self.policy == "stop":
            raise RunFailed(f"{first}{more}; go on without such records with --on-corrupt skip, or {for_good}")
        if len(self) + len(found) > self.limit:
            known = f"{len(self)} were skipped before, --max-corrupt is {self.limit}"
            raise RunFailed(f"{first}{more}; {known}: look at the disk, {for_good}")
        for record in found:
            logger.warning("skipped: %s", record)
        self.lines += [{**asdict(record), "epoch": epoch, "step": step} for record in found]
        if self._path:
            self._write()

    def _write(self) -> None:
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        try:
            write_atomic(self._path, text.encode())  # type: ignore[arg-type]
        except OSError as error:  # the checkpoints have the list, too
            logger.warning("%s: not written (%s); training goes on", self._path, error.strerror or error)
