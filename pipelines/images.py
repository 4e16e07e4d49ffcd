"""Reads image files in batches, with the same pixels that building shards and evaluating them would give.

A file goes through `clean_image`, as in the builder, then through the plan's geometry and `tf_image.render`.
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
from pipelines.errors import first_line, reason
from pipelines.loader import BatchSpec
from pipelines.tf_image import Work, render
from pipelines.uniform import RecordUniform


class ImageFile(NamedTuple):
    """An image file.

    Attributes:
        path: of the file.
        label: the number of its class, if that is known.
    """

    path: Path
    label: int = 0


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """The result of reading at most batch_size files.

    Attributes:
        files: those that could be read, in order.
        images: [len(files), S, S, 3], their pixels.
        rejected: the other files, each with the reason in one line.
    """

    files: tuple[ImageFile, ...]
    images: np.ndarray
    rejected: tuple[tuple[ImageFile, str], ...]


class ImageReader:
    """Reads image files for a model.

    Args:
        batch: shape and dtype of the batches.
        augment: an evaluation.
        short_side: larger images are shrunk to this shorter side, as the builder does; None keeps them.
    """

    def __init__(self, batch: BatchSpec, augment: AugmentSpec, short_side: int | None = None) -> None:
        self._batch, self._augment, self._short_side = batch, augment, short_side
        kinds = [((), tf.string), ((4,), tf.int32), ((2, 3), tf.float32), ((3, 4), tf.float32), ((), tf.bool)]
        self._render = tf.function(
            lambda encoded, *work: render(encoded, Work(*work), batch, augment),
            input_signature=[tf.TensorSpec(*kind) for kind in kinds],
        )

    def image(self, path: Path) -> np.ndarray:
        """Reads the pixels of one file, [S, S, 3]. Raises `ImageRejected` if it cannot be read or is not an image."""
        try:
            with open_regular(path) as stream:
                data = stream.readall()
        except OSError as error:
            raise ImageRejected(reason(error)) from None
        return self.pixels(data)

    def pixels(self, data: bytes) -> np.ndarray:
        """The same for the content of a file."""
        clean = clean_image(data, short_side=self._short_side)
        first = RecordUniform(0, 0, np.zeros(1, np.int64))  # all records have the same draws in an evaluation
        size = self._batch.image_size
        draws = self._augment.draw(first, np.array([clean.height]), np.array([clean.width]), size)
        work = Work.of(draws, self._batch, self._augment)
        try:
            return self._render(clean.encoded, *(part[0] for part in work)).numpy()
        except tf.errors.OpError as error:  # Pillow accepts some damaged files that TensorFlow does not
            raise ImageRejected(first_line(error)) from None

    def batches(self, files: Iterable[ImageFile], workers: int) -> Iterator[ImageBatch]:
        """Yields all files in order, batch by batch. While one batch is used, `workers` threads read the next."""
        files = iter(files)
        with ThreadPoolExecutor(workers, "kimagenet-image") as pool:
            ahead = self._submit(files, pool)
            while ahead:
                current, ahead = ahead, self._submit(files, pool)
                yield self._collect(current)

    def _submit(
        self, files: Iterator[ImageFile], pool: ThreadPoolExecutor
    ) -> list[tuple[ImageFile, Future[np.ndarray]]]:
        return [(file, pool.submit(self.image, file.path)) for file in islice(files, self._batch.batch_size)]

    def _collect(self, submitted: list[tuple[ImageFile, Future[np.ndarray]]]) -> ImageBatch:
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
