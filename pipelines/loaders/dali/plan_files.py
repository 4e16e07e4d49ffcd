"""A plan in the form DALI reads: a list of (shard, index) pairs, and a TFRecord of planned floats in lockstep with it.

DALI's reader follows the line order of the index it is given, and accepts one path many times. So the order of an
epoch is a list of runs. A run is the index lines of consecutive positions that are in the same shard.
"""

import itertools
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.augment import AugmentSpec
from pipelines.loader import BatchSpec
from pipelines.shards import records
from pipelines.shards.dataset import USUAL_FEATURES, Features
from pipelines.shards.index import Index
from pipelines.stream import Segment
from pipelines.system.lock import LOCK_FILE, try_lock

PLAN = "plan"
# affine 2×3, colour 3×4, box (y, x, height, width), weight
PLAN_FLOATS = 6 + 12 + 4 + 1
_PLAN_RECORD_BYTES = 4 * PLAN_FLOATS + 64
_TMPFS_PAGE = 4096
_PREFIX = "kimagenet-plan-"
_PIECE = 1 << 16  # positions drawn at a time, so that memory does not grow with the epoch
_RUNS = 1 << 8  # index files written between two calls of `rest`


@dataclass(frozen=True)
class PlanFiles:
    """A plan on disk.

    Attributes:
        shards: a path for each run of records, in reading order.
        indexes: the path of each run's index, parallel to `shards`.
        plan: path of the planned floats, a TFRecord.
        plan_index: path of its index.
        whole_images: whether the plan is for a graph that decodes whole images; see `reads_box`.
        features: the names of the features of the records in `shards`.
    """

    shards: list[str]
    indexes: list[str]
    plan: str
    plan_index: str
    whole_images: bool = False
    features: Features = USUAL_FEATURES


def reads_box(augment: AugmentSpec, whole_images: bool) -> bool:
    """Whether the warp reads the planned box of an image, and the plan's matrix refers to the box.

    False where whole images are decoded and can turn: outside is black then, and the box ends at the image's edge or
    a pixel beyond what the warp reads. Where nothing turns, the edges that repeat are those of the box.
    """
    return not (whole_images and augment.turns)


class PlanFolder(tempfile.TemporaryDirectory):
    """A temporary folder that other processes recognize as in use, also those of other containers.

    A locked file in it says so. Process numbers would not: containers may share /dev/shm, and number their own.
    """

    def __init__(self, parent: Path) -> None:
        super().__init__(prefix=_PREFIX, dir=parent)
        lock = None
        with suppress(OSError):  # no locks in this file system: other processes will leave the folder
            lock = try_lock(Path(self.name) / "new")
            os.rename(Path(self.name) / "new", Path(self.name) / LOCK_FILE)  # never there without a lock
        self._unlock = weakref.finalize(self, _close, lock)

    def cleanup(self) -> None:
        """Removes the folder."""
        super().cleanup()
        self._unlock()


def make_folder(segment: Segment) -> tempfile.TemporaryDirectory:
    """A temporary folder for the plan's files: in memory if that has enough room, else on disk.

    Also removes folders that killed processes have left there.
    """
    needed = segment.positions * _PLAN_RECORD_BYTES + len(_run_starts(segment)) * _TMPFS_PAGE
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 * needed
    parent = memory if roomy else Path(tempfile.gettempdir())
    _sweep(parent)
    return PlanFolder(parent)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it belongs to another user, has no lock, or its owner has just removed it
            if (lock := _lock_of_dead(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _lock_of_dead(folder: Path) -> int | None:
    """The lock of a folder whose process has ended; None if it may be in use. Raises `OSError` if nobody can tell."""
    path = folder / LOCK_FILE
    if not path.is_file():  # its process is about to lock it, or was killed before it could
        return None
    return try_lock(path)


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def write_plan(
    segment: Segment,
    batch: BatchSpec,
    folder: Path,
    rest: Callable[[], object] = lambda: None,
    *,
    whole_images: bool = False,
) -> PlanFiles:
    """Writes the plan of a segment into an empty folder.

    Args:
        segment: what one pipeline reads.
        batch: says the dtype, and so the range that colours are scaled to.
        folder: an empty folder.
        rest: called after each piece of the work.
        whole_images: whether the graph decodes whole images, as on a GPU, not the planned boxes.
    """
    shards, indexes = _write_runs(segment, folder, rest)
    plan_path, plan_index = folder / "plan", folder / "plan.idx"
    size = _write_floats(segment, batch, plan_path, reads_box(segment.plan.augment, whole_images), rest)
    with open(plan_index, "w") as stream:
        stream.writelines(f"{position * size} {size}\n" for position in range(segment.positions))
    features = segment.plan.shards.features
    return PlanFiles(shards, indexes, str(plan_path), str(plan_index), whole_images, features)


def _write_runs(segment: Segment, folder: Path, rest: Callable[[], object]) -> tuple[list[str], list[str]]:
    """One index file for each run of positions in the same shard."""
    shards, planned, starts = segment.plan.shards, segment.records, _run_starts(segment)
    edges = [*starts.tolist(), len(planned)]
    indexes = []
    for first in range(0, len(starts), _RUNS):  # lines of many runs at a time: a run may be one record
        ends = edges[first : first + _RUNS + 1]
        some = planned[ends[0] : ends[-1]]
        lines = Index(shards.offsets[some], shards.lengths[some]).lines()
        for start, end in itertools.pairwise(ends):
            path = f"{folder}/{start}"
            with open(path, "wb") as stream:
                stream.writelines(lines[start - ends[0] : end - ends[0]])
            indexes.append(path)
        rest()
    return [str(shards.paths[number]) for number in shards.shard[planned[starts]].tolist()], indexes


def _run_starts(segment: Segment) -> np.ndarray:
    """The positions at which the shard changes, the first one included."""
    return np.flatnonzero(np.diff(segment.plan.shards.shard[segment.records], prepend=-1))


def _write_floats(segment: Segment, batch: BatchSpec, path: Path, to_box: bool, rest: Callable[[], object]) -> int:
    """One framed `tf.train.Example` per position, all of one size, so that structured arrays hold them; the size.

    Matrices refer to the planned box (`to_box`), or else to the whole image. The data's CRC stays zero: DALI's reader
    does not check it, and nothing else reads these files.
    """
    example = records.encode_example({PLAN: np.zeros(PLAN_FLOATS)})
    header = records.frame(example)[: records.HEADER_BYTES] + example[: -4 * PLAN_FLOATS]
    layout = np.dtype([("header", f"V{len(header)}"), ("floats", "<f4", PLAN_FLOATS), ("crc", "<u4")])
    with open(path, "wb") as stream:
        for plan, first, last in segment.parts():
            for start in range(first, last, _PIECE):
                stop = min(start + _PIECE, last)
                draws = plan.draw(start, stop)
                table = np.zeros(stop - start, layout)
                table["header"] = np.void(header)
                floats = table["floats"]
                if to_box:
                    draws.affine[:, :, 2] -= draws.box[:, [1, 0]]
                floats[:, 0:6] = draws.affine.reshape(-1, 6)
                floats[:, 6:18] = batch.to_output_range(draws.colour).reshape(-1, 12)
                floats[:, 18:22] = draws.box
                floats[:, 22] = plan.weights_between(start, stop)
                table.tofile(stream)
                rest()
    return layout.itemsize
