"""What a run says: a progress line, log.jsonl, TensorBoard. Each is a Keras callback beside a `Loop`.

log.jsonl has one JSON object per line. All have `event` and `time` (Unix seconds):

* `start`, at the beginning, and `resume` where a run goes on: `version` (1), `epochs`, `steps_per_epoch`,
  `global_batch`, `global_step`. Lines of steps that a resumed run does again are removed before
* `step`, every --log-steps steps and after the last of an epoch: `epoch` and `step` (from 0), `global_step` (steps
  done), `learning_rate`, and of the steps since the last such line `loss`, `top1` (means), and, without the first few
  steps of a run, `images_per_second` and `data_wait` (the share of the time spent waiting for data)
* `epoch`: `epoch`, `global_step`, `learning_rate` (the last), `loss`, `top1`, `images_per_second`, `data_wait` of the
  epoch; `skipped`, the corrupt records that the run goes on without so far (see kimagenet.corrupt); `val_loss`,
  `val_top1`, `val_top5` where there is a validation split, and `val_raw_loss`, `val_raw_top1`, `val_raw_top5` beside
  them if the recipe averages weights: of the weights as they are
* `end`: `global_step`; it is missing if the run was cut off
"""

import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import keras
import tensorflow as tf

from kimagenet.loop import Loop, Totals
from kimagenet.steps import to_input

LOG_VERSION = 1

_REDRAW_SECONDS = 0.1
_QUIET_SECONDS = 20.0


class Reporter(keras.callbacks.Callback):
    """Base: `step` gets the means of the steps since the last log step, `epoch` those of an epoch."""

    needs_every_loss = False

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.loop = loop
        self.current_epoch = 0
        self._since_step = Totals()

    def step(self, step: int, values: dict[str, float]) -> None:
        """After a log step."""

    def epoch(self, values: dict[str, float]) -> None:
        """After an epoch and its validation."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.current_epoch = epoch
        self._since_step = self.loop.totals

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.loop.is_log_step(batch):
            interval = self.loop.totals - self._since_step
            self._since_step = self.loop.totals
            self.step(batch, interval.means() | interval.speed() | {"learning_rate": logs["learning_rate"]})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epoch({**logs, **self.loop.epoch_totals.speed(), "skipped": self.loop.num_skipped})


class ProgressLine(Reporter):
    """A line for each epoch, and within it one that a terminal rewrites; else a line for each log step.

    Where the log steps are far apart, a line comes all the same after `_QUIET_SECONDS`.
    """

    def __init__(self, loop: Loop, epochs: int, stream: TextIO | None = None) -> None:
        super().__init__(loop)
        self._epochs = epochs
        self._stream = stream or sys.stdout
        self._on_terminal = self._stream.isatty()
        self._drawn = time.monotonic()
        self._validation_began = self._validation_seconds = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, logs)
        quiet = time.monotonic() - self._drawn
        if self._on_terminal and quiet > _REDRAW_SECONDS:
            columns = shutil.get_terminal_size().columns
            self._write("\r" + self._line(batch)[: columns - 1] + "\x1b[K")
        elif not self._on_terminal and quiet > _QUIET_SECONDS:
            self._write(self._line(batch) + "\n")

    def step(self, step: int, values: dict[str, float]) -> None:
        if not self._on_terminal and step + 1 < self.loop.steps_per_epoch:  # at its end the epoch's own line comes
            self._write(self._line(step) + "\n")

    def epoch(self, values: dict[str, float]) -> None:
        line = f"epoch {self.current_epoch + 1}/{self._epochs}  {_means(values)}"
        if "val_loss" in values:
            line += f"  |  validation: loss {values['val_loss']:.4f}"
            line += f"  top-1 {values['val_top1']:.2%}  top-5 {values['val_top5']:.2%}"
        if "val_raw_top1" in values:
            line += f"  (not averaged: {values['val_raw_top1']:.2%})"
        skipped = f"  {values['skipped']} corrupt records skipped" if values["skipped"] else ""
        self._write(("\r\x1b[K" if self._on_terminal else "") + line + _speed(values) + skipped + "\n")

    def on_test_begin(self, logs: Any = None) -> None:
        self._validation_began = time.monotonic()

    def on_test_end(self, logs: Any = None) -> None:
        self._validation_seconds = time.monotonic() - self._validation_began

    def _line(self, step: int) -> str:
        totals = self.loop.epoch_totals
        position = f"epoch {self.current_epoch + 1}/{self._epochs}  {step + 1}/{self.loop.steps_per_epoch}"
        return f"{position}{self._left(step)}  {_means(totals.means())}{_speed(totals.speed())}"

    def _left(self, step: int) -> str:
        """The time left of the whole run, once the speed is known."""
        if not self.loop.totals.images:
            return ""
        seconds_per_step = self.loop.totals.seconds / self.loop.totals.images * self.loop.training.global_batch
        epochs = self._epochs - self.current_epoch
        steps = epochs * self.loop.steps_per_epoch - step - 1
        return f"  {duration(steps * seconds_per_step + epochs * self._validation_seconds)} left"

    def _write(self, text: str) -> None:
        self._drawn = time.monotonic()
        self._stream.write(text)
        self._stream.flush()


class JsonLines(Reporter):
    """Appends to log.jsonl line by line, so that a run can be followed and a cut-off one be read."""

    def __init__(self, loop: Loop, path: Path, epochs: int) -> None:
        super().__init__(loop)
        self._path = path
        self._epochs = epochs

    def on_train_begin(self, logs: Any = None) -> None:
        self._write(
            "resume" if self.loop.global_step else "start",
            version=LOG_VERSION,
            epochs=self._epochs,
            steps_per_epoch=self.loop.steps_per_epoch,
            global_batch=self.loop.training.global_batch,
            global_step=self.loop.global_step,
        )

    def step(self, step: int, values: dict[str, float]) -> None:
        self._write("step", epoch=self.current_epoch, step=step, global_step=self.loop.global_step, **values)

    def epoch(self, values: dict[str, float]) -> None:
        self._write("epoch", epoch=self.current_epoch, global_step=self.loop.global_step, **values)

    def on_train_end(self, logs: Any = None) -> None:
        self._write("end", global_step=self.loop.global_step)

    def _write(self, event: str, **values: Any) -> None:
        # JSON knows no NaN and no infinity: they are null.
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"event": event, "time": round(time.time(), 3), **known}, allow_nan=False) + "\n")


class TensorBoardScalars(Reporter):
    """The same numbers for TensorBoard, over `global_step`: curves `train` and `validation` in the same charts.

    And a sheet of the first images of the first batch, as the loader gave them.
    """

    def __init__(self, loop: Loop, directory: Path) -> None:
        super().__init__(loop)
        self._train = tf.summary.create_file_writer(str(directory / "train"))
        self._validation = tf.summary.create_file_writer(str(directory / "validation"))
        self._has_sheet = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, logs)
        if not self._has_sheet:
            self._has_sheet = True
            images = self.loop.training.strategy.experimental_local_results(self.loop.images)[0]
            with self._train.as_default(step=self.loop.global_step):
                tf.summary.image("inputs", sheet(images)[None])

    def step(self, step: int, values: dict[str, float]) -> None:
        self._write(self._train, values)

    def epoch(self, values: dict[str, float]) -> None:
        prefix = "val_"
        found = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        self._write(self._validation, found)

    def on_train_end(self, logs: Any = None) -> None:
        self._train.close()
        self._validation.close()

    def _write(self, writer: Any, values: dict[str, float]) -> None:
        with writer.as_default(step=self.loop.global_step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        writer.flush()


def sheet(images: tf.Tensor, columns: int = 8, rows: int = 4) -> tf.Tensor:
    """The first images [B, H, W, 3] of a batch, of any dtype that loaders give, side by side: float32 in [0, 1]."""
    images = to_input(images)[: columns * rows] / 2 + 0.5
    columns = min(columns, len(images))
    rows = len(images) // columns
    parts = tf.reshape(images[: columns * rows], (rows, columns, *images.shape[1:]))
    return tf.reshape(tf.transpose(parts, (0, 2, 1, 3, 4)), (rows * images.shape[1], columns * images.shape[2], 3))


def duration(seconds: float) -> str:
    """0:07, 12:34, 1:23:45."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _means(values: dict[str, float]) -> str:
    return f"loss {values['loss']:.4f}  top-1 {values['top1']:.1%}" if "loss" in values else "loss –"


def _speed(values: dict[str, float]) -> str:
    if "images_per_second" not in values:
        return ""
    return f"  {values['images_per_second']:.0f} images/s  data wait {values['data_wait']:.0%}"
