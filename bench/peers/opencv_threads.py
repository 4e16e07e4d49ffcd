"""What hand-written code reaches: Python threads, simplejpeg's full decode, one OpenCV warp, one OpenCV colour matrix.

It carries out our own plan, so it does exactly what our loaders do.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.reading import read_image
from pipelines import BatchSpec, EpochPlan

if TYPE_CHECKING:
    from bench.peers import Task

TITLE = "hand-written OpenCV threads"
AUGMENTS = ("full", "standard")


def unavailable() -> str | None:
    """OpenCV is no dependency of ours."""
    missing = [package for package in ("cv2", "simplejpeg") if find_spec(package) is None]
    return (
        f"{' and '.join(missing)} not installed (`pip install opencv-python-headless simplejpeg`)" if missing else None
    )


def batches(task: "Task") -> Iterator[Any]:
    """One task an image; two batches are in work at any time."""
    import cv2

    from bench.settings import named_augment, stretched

    cv2.setNumThreads(0)
    shards = stretched(task.shards, 64_000)
    plan = EpochPlan(shards, named_augment(task.augment), task.batch_size, task.image_size)
    work = _Work(plan)
    with ThreadPoolExecutor(task.workers) as pool:
        pending: deque[Any] = deque()
        step = 0
        while True:
            while len(pending) < 3:
                images = np.empty((task.batch_size, task.image_size, task.image_size, 3), np.float32)
                first = step % plan.steps_per_epoch * task.batch_size
                jobs = [pool.submit(work, images[i], first + i) for i in range(task.batch_size)]
                pending.append((images, jobs))
                step += 1
            images, jobs = pending.popleft()
            yield images, np.array([job.result() for job in jobs], np.int32)


class _Work:
    def __init__(self, plan: EpochPlan) -> None:
        self.shards, self.size, self.records, draws = plan.shards, plan.image_size, plan.records, plan.draws
        # OpenCV's pixels have integer centres, the plan's begin at corners.
        self.affine = draws.affine.copy()
        self.affine[:, :, 2] += draws.affine[:, :, :2].sum(axis=2) / 2 - 0.5
        self.colour = draws.colour.astype(np.float32)
        self.scale = BatchSpec(1, 1).to_output_range(np.eye(3, 4)[None])[0]

    def __call__(self, out: np.ndarray, position: int) -> int:
        import cv2
        from simplejpeg import decode_jpeg

        encoded, label = read_image(self.shards, int(self.records[position]))
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = cv2.warpAffine(decode_jpeg(encoded), self.affine[position], (self.size, self.size), flags=flags)
        image = cv2.transform(image, self.colour[position])  # uint8: clips
        out[:] = image
        out *= self.scale[0, 0]
        out += self.scale[0, 3]
        return label
