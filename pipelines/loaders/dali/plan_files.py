"""A plan in the form DALI reads: (shard, index) pairs, and a TFRecord of planned floats in lockstep with them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.augment import AugmentSpec
from pipelines.loader import BatchSpec
from pipelines.loaders.dali.index_files import write_indexes
from pipelines.shards import records
from pipelines.shards.dataset import USUAL_FEATURES, Features
from pipelines.stream import Segment

PLAN = "plan"
# affine 2×3, colour 3×4, box (y, x, height, width), weight
PLAN_FLOATS = 6 + 12 + 4 + 1
RECORD_BYTES = 4 * PLAN_FLOATS + 64  # of a position in `plan` and its index, at most
_PIECE = 1 << 16  # positions drawn at a time, so that memory does not grow with the epoch


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
    a pixel beyond what the warp reads. Where nothing turns, the edges that repeat are those of the box. Where a policy
    moves images, outside of the box is black.
    """
    return not (whole_images and augment.turns) or augment.policy is not None


def write_plan(
    segment: Segment,
    batch: BatchSpec,
    folder: Path,
    rest: Callable[[], object] = lambda: None,
    *,
    indexes: Path | None = None,
    whole_images: bool = False,
) -> PlanFiles:
    """Writes the plan of a segment.

    Args:
        segment: what one pipeline reads.
        batch: says the dtype, and so the range that colours are scaled to.
        folder: an empty folder.
        rest: called after each piece of the work.
        indexes: a folder for the index files, which may hold those of an earlier plan; None for one in `folder`.
        whole_images: whether the graph decodes whole images, as on a GPU, not the planned boxes.
    """
    if indexes is None:
        indexes = folder / "indexes"
        indexes.mkdir()
    shards, index_paths = write_indexes(segment, indexes, rest)
    plan_path, plan_index = folder / "plan", folder / "plan.idx"
    size = _write_floats(segment, batch, plan_path, reads_box(segment.plan.augment, whole_images), rest)
    with open(plan_index, "w") as stream:
        stream.writelines(f"{position * size} {size}\n" for position in range(segment.positions))
    features = segment.plan.shards.features
    return PlanFiles(shards, index_paths, str(plan_path), str(plan_index), whole_images, features)


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
