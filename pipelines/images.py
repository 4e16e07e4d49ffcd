"""Image files as they lie in folders, in batches of the very pixels that shards and an evaluation would make of them.

A file goes through `clean_image`, as the builder would send it, then through the plan's geometry and `tf_image.render`.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipelines.augment import AugmentSpec
from pipelines.building.clean import ImageRejected, clean_image
from pipelines.building.sources import open_regular
from pipelines.errors import first_line
from pipelines.loader import BatchSpec
from pipelines.tf_image import Work, render
from pipelines.uniform import RecordUniform


class ImageFile(NamedTuple):
    """A file, and the number of its class if that is known."""

    path: Path
    label: int = 0


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """What became of at most batch_size files: `images` [len(files), S, S, 3] of those that could be read, in order.

    `rejected` are the others, each with the reason in one line.
    """

    files: tuple[ImageFile, ...]
    images: np.ndarray
    rejected: tuple[tuple[ImageFile, str], ...]


class ImageReader:
    """Reads files for a model. `short_side`: as the option of `tools.build_shards`; None keeps large images."""

    def __init__(self, batch: BatchSpec, augment: AugmentSpec, short_side: int | None = None) -> None:
        self._batch, self._augment, self._short_side = batch, augment, short_side
        kinds = [((), tf.string), ((4,), tf.int32), ((2, 3), tf.float32), ((3, 4), tf.float32), ((), tf.bool)]
        self._render = tf.function(
            lambda encoded, *work: render(encoded, Work(*work), batch, augment),
            input_signature=[tf.TensorSpec(*kind) for kind in kinds],
        )

    def image(self, path: Path) -> np.ndarray:
        """One file's pixels; raises `ImageRejected`."""
        try:
            with open_regular(path) as stream:
                data = stream.readall()
        except OSError as error:
            raise ImageRejected(error.strerror or str(error)) from None
        return self.pixels(data)

    def pixels(self, data: bytes) -> np.ndarray:
        """The same of a file's content."""
        clean = clean_image(data, short_side=self._short_side)
        first = RecordUniform(0, 0, np.zeros(1, np.int64))  # an evaluation's draws are the same for all records
        size = self._batch.image_size
        draws = self._augment.draw(first, np.array([clean.height]), np.array([clean.width]), size)
        work = Work.of(draws, self._batch, self._augment)
        try:
            return self._render(clean.encoded, *(part[0] for part in work)).numpy()
        except tf.errors.OpError as error:  # of the few damages that Pillow forgives and TensorFlow does not
            raise ImageRejected(first_line(error)) from None

    def batches(self, files: Iterable[ImageFile], workers: int) -> Iterator[ImageBatch]:
        """All files in order, batch by batch; while one is used, `workers` threads read the next."""
        files = iter(files)
        with ThreadPoolExecutor(workers, "kimagenet-image") as pool:
            ahead = self._submit(files, pool)
            while ahead:
                current, ahead = ahead, self._submit(files, pool)
                yield self._collect(current)

    def _submit(self, files: Iterator[ImageFile], pool: ThreadPoolExecutor) -> list[tuple[ImageFile, Future]]:
        return [(file, pool.submit(self.image, file.path)) for file in islice(files, self._batch.batch_size)]

    def _collect(self, submitted: list[tuple[ImageFile, Future]]) -> ImageBatch:
        files, images, rejected = [], [], []
        for file, future in submitted:
            try:
                images.append(future.result())
                files.append(file)
            except ImageRejected as error:
                rejected.append((file, str(error)))
        size = self._batch.image_size
        pixels = np.stack(images) if images else np.zeros((0, size, size, 3), np.float32)
        return ImageBatch(tuple(files), pixels, tuple(rejected))
