"""Index files: the records of a plan in the form that DALI reads.

DALI's reader follows the line order of the index it is given, and accepts one path many times. So the order of an
epoch is a list of runs. A run is the index lines of consecutive positions that are in the same shard. In the order
made for disks most runs are one record.
"""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipelines.loaders.dali.plan_folder import PlanFolder, has_room, make_folder
from pipelines.shards.index import Index
from pipelines.stream import Segment

_PAGE = 4096  # bytes that a small file takes
_RUNS = 1 << 8  # files written between two calls of `rest`


class IndexFolders:
    """Folders of index files. A plan writes into the files of an earlier one: new files would take three times as long.

    DALI reads an index when its pipeline begins, so the files are free as soon as the first batch is there.
    """

    def __init__(self) -> None:
        self._free: list[PlanFolder] = []
        self._is_closed = False

    def take(self, segment: Segment) -> PlanFolder:
        """A folder for the index files of a segment."""
        needed = len(run_starts(segment)) * _PAGE
        if self._free:
            folder = self._free.pop()
            if has_room(Path(folder.name), needed):
                return folder
            folder.cleanup()
        return make_folder(needed)

    def give_back(self, folder: PlanFolder) -> None:
        """Takes a folder that no pipeline reads any more."""
        self._free.append(folder)
        if self._is_closed:
            self.close()

    def close(self) -> None:
        """Removes the folders that are free, and later those that come back."""
        self._is_closed = True
        while self._free:
            self._free.pop().cleanup()


def run_starts(segment: Segment) -> np.ndarray:
    """The positions at which the shard changes, the first one included."""
    return np.flatnonzero(np.diff(segment.plan.shards.shard[segment.records], prepend=-1))


def write_indexes(segment: Segment, folder: Path, rest: Callable[[], object]) -> tuple[list[str], list[str]]:
    """One index file for each run of positions in the same shard. Files of an earlier plan are overwritten.

    Args:
        segment: what one pipeline reads.
        folder: where the files are written.
        rest: called after each piece of the work.

    Returns:
        The path of each run's shard, and of its index.
    """
    shards, planned, starts = segment.plan.shards, segment.records, run_starts(segment)
    edges = [*starts.tolist(), len(planned)]
    indexes = [f"{folder}/{number}" for number in range(len(starts))]
    for first in range(0, len(starts), _RUNS):  # lines of many runs at a time: a run may be one record
        ends = edges[first : first + _RUNS + 1]
        some = planned[ends[0] : ends[-1]]
        lines = Index(shards.offsets[some], shards.lengths[some]).lines()
        for path, (start, end) in zip(indexes[first:], itertools.pairwise(ends), strict=False):
            _overwrite(path, b"".join(lines[start - ends[0] : end - ends[0]]))
        rest()
    return [str(shards.paths[number]) for number in shards.shard[planned[starts]].tolist()], indexes


def _overwrite(path: str, content: bytes) -> None:
    """Writes a file without making it empty first, which would take longer."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        written = os.write(descriptor, content)
        while written < len(content):  # the disk is full, or a signal came
            written += os.write(descriptor, content[written:])
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)
