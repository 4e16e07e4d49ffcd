"""The curves of a run for TensorBoard. They are appended like log.jsonl, so that a resumed run can cut them back.

TensorFlow's own writer would create another file at each start, raise if the disk is full, and leave half an event.
"""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from kimagenet.recipe import Recipe
from kimagenet.runs.append_file import AppendFile
from kimagenet.runs.hparams import recipe_values
from kimagenet.runs.reporters import Reporter
from kimagenet.training.loop import Loop
from kimagenet.training.steps import to_input
from pipelines.shards.records import frame

FILE_NAME = "events.out.tfevents"  # TensorBoard recognizes its files by the last word

# TensorBoard shows the charts of a group together. All other values are in the group "quality".
GROUPS = {
    "learning_rate": "schedule",
    "images_per_second": "speed",
    "data_wait": "speed",
    "storage_wait": "speed",
}


class TensorBoardEvents(Reporter):
    """Writes the numbers of log.jsonl over `global_step`, as curves `train` and `validation` in the same charts.

    It also writes the recipe, and one picture: the first images of the first batch, as the loader gave them.

    Args:
        loop: the loop that is reported.
        directory: the folder of TensorBoard's files.
        recipe: the recipe of the run.
    """

    def __init__(self, loop: Loop, directory: Path, recipe: Recipe) -> None:
        super().__init__(loop)
        header = _encode(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._train, self._validation = (
            AppendFile(directory / name / FILE_NAME, header) for name in ("train", "validation")
        )
        # TensorBoard takes the folders below as the curves of this recipe.
        about = Event(wall_time=time.time(), summary=Summary(value=recipe_values(recipe, directory.parent.name)))
        self._recipe = AppendFile(directory / FILE_NAME, header + _encode(about))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, logs)
        if self.loop.global_step == 1:
            self._recipe.append(b"")  # the header is the whole content
            images = self.loop.training.strategy.experimental_local_results(self.loop.images)[0]
            self._append(self._train, _picture("inputs", sheet(images)))

    def step(self, step: int, values: dict[str, float]) -> None:
        self._append(self._train, *_scalars(values))

    def epoch(self, values: dict[str, float]) -> None:
        prefix = "val_"
        found = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        self._append(self._validation, *_scalars(found))

    def _append(self, file: AppendFile, *values: Summary.Value) -> None:
        if values:
            event = Event(wall_time=time.time(), step=self.loop.global_step, summary=Summary(value=values))
            file.append(_encode(event))


def sheet(images: tf.Tensor, columns: int = 8, rows: int = 4) -> np.ndarray:
    """Arranges the first images of a batch in one picture. The rest of the last row is black.

    Args:
        images: [B, H, W, 3], of any dtype that loaders give.
        columns: the most images in a row.
        rows: the most rows.

    Returns:
        uint8 [rows·H, columns·W, 3].
    """
    pictures = to_input(images[: columns * rows]).numpy()
    pictures = np.clip(np.rint((pictures + 1) * 127.5), 0, 255).astype(np.uint8)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    grid = np.zeros((rows * columns, *pictures.shape[1:]), np.uint8)
    grid[: len(pictures)] = pictures
    return np.concatenate(np.concatenate(grid.reshape(rows, columns, *pictures.shape[1:]), axis=1), axis=1)


def _scalars(values: dict[str, float]) -> list[Summary.Value]:
    return [Summary.Value(tag=f"{GROUPS.get(name, 'quality')}/{name}", simple_value=v) for name, v in values.items()]


def _picture(tag: str, pixels: np.ndarray) -> Summary.Value:
    """The summary of a picture, uint8 [H, W, 3], as PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    height, width, channels = pixels.shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=stream.getvalue())
    return Summary.Value(tag=tag, image=image)


def _encode(event: Event) -> bytes:
    return frame(event.SerializeToString())
