"""A hand-written loader: Python threads, simplejpeg's full decode, one OpenCV warp, one OpenCV colour matrix.

It executes our plan, so it makes the same batches as our loaders.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bench.peers import Task, missing
from bench.reading import read_image
from pipelines import BatchSpec, EpochPlan

TITLE = "hand-written OpenCV threads"
AUGMENTS = ("full", "standard")


def unavailable() -> str | None:
    """Which of its packages is missing, or None."""
    absent = missing("cv2", "simplejpeg")
    return f"{' and '.join(absent)} not installed (`pip install opencv-python-headless simplejpeg`)" if absent else None


def batches(task: Task) -> Iterator[Any]:
    """Batches with a task for each image; up to three batches are in progress at a time."""
    import cv2

    from bench.settings import named_augment, stretched

    cv2.setNumThreads(0)
    shards = stretched(task.shards, task.records)
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
        # Pixel centres are integers for OpenCV; in the plan the corners are.
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
