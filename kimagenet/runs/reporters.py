"""The reports of a run: a progress line, log.jsonl and summary.csv. Each is a Keras callback that reads a `Loop`.

log.jsonl has one JSON object per line. All have `event` and `time` (Unix seconds):

* `start` at the beginning, `resume` where a run is resumed: `version` (1), `epochs`, `steps_per_epoch`, `global_batch`,
  `replicas` (devices that share it), `global_step`. Lines of steps that a resumed run repeats are removed first.
* `step` every `log_steps` steps and after the last step of an epoch: `epoch` and `step` (from 0), `global_step` (steps
  done), `learning_rate`; means over the steps since the last such line or a resume: `loss`, `top1`; and, except for the
  first few steps of a run, `images_per_second` (all replicas together), `data_wait` (share of the time spent waiting
  for data) and `storage_wait` (the part of it in which a thread waited for a disk or the network and decoders were
  idle, sampled ten times a second).
* `epoch`: `epoch`, `global_step`, `learning_rate` (the last one); `loss`, `top1`, `images_per_second`, `data_wait`,
  `storage_wait` of the epoch; `skipped`, the number of corrupt records skipped so far (see
  kimagenet.training.recovery); `val_loss`, `val_top1`, `val_top5` if there is a validation split; `val_raw_loss`,
  `val_raw_top1`, `val_raw_top5` if the recipe averages weights, for the weights that are not averaged.
* `end`: `global_step`. It is missing if the run was interrupted.

summary.csv has the same numbers for each epoch, except `storage_wait`, for spreadsheets. `SUMMARY` names its columns.
"""

import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import keras

from kimagenet.runs.append_file import AppendFile
from kimagenet.training.loop import Loop
from kimagenet.training.results import Totals

LOG_VERSION = 1

SUMMARY = (
    *("epoch", "global_step", "learning_rate", "loss", "top1", "val_loss", "val_top1", "val_top5"),
    *("val_raw_loss", "val_raw_top1", "val_raw_top5", "skipped", "images_per_second", "data_wait"),
)

SHOWN_WAIT = 0.05  # of the time: the least wait for storage that the progress line shows
_LEAST_FOR_TOP5 = 5  # with so many classes or fewer, top-5 is always 100 %
_REDRAW_SECONDS = 0.1
_QUIET_SECONDS = 20.0


class Reporter(keras.callbacks.Callback):
    """Base of the reports: `step` gets the means since the last log step, `epoch` those of an epoch.

    Attributes:
        loop: the loop that is reported.
        current_epoch: the epoch that is trained, from 0.
    """

    needs_every_loss = False

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.loop = loop
        self.current_epoch = 0
        self._since_step = Totals()

    def step(self, step: int, values: dict[str, float]) -> None:
        """Reports a log step.

        Args:
            step: the step in the epoch, from 0.
            values: `loss`, `top1`, `learning_rate`; after the warm-up also `images_per_second`, `data_wait` and
                `storage_wait`.
        """

    def epoch(self, values: dict[str, float]) -> None:
        """Reports an epoch, after its validation.

        Args:
            values: as for a log step, with `skipped` and the `val_…` values.
        """

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
    """Prints a line for each epoch. Within an epoch, a terminal shows one line that is updated.

    In other streams there is a line for each log step, and one after `_QUIET_SECONDS` without any.

    Args:
        loop: the loop that is reported.
        epochs: epochs of the whole run.
        stream: where to print; None: stdout.
    """

    def __init__(self, loop: Loop, epochs: int, stream: TextIO | None = None) -> None:
        super().__init__(loop)
        self._epochs = epochs
        self._stream = stream or sys.stdout
        self._on_terminal = self._stream.isatty()
        self._drawn = time.monotonic()
        self._line_is_open = False
        self._validation_began = self._validation_seconds = 0.0

    def close(self) -> None:
        """Ends the line that a terminal would update, so that the next text starts on a new line."""
        if self._line_is_open:
            self._write("\n")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, logs)
        quiet = time.monotonic() - self._drawn
        if self._on_terminal and quiet > _REDRAW_SECONDS:
            columns = shutil.get_terminal_size().columns
            self._write("\r" + fitted(self._line(batch), columns - 1) + "\x1b[K")
        elif not self._on_terminal and quiet > _QUIET_SECONDS:
            self._write(self._line(batch) + "\n")

    def step(self, step: int, values: dict[str, float]) -> None:
        if (
            not self._on_terminal and step + 1 < self.loop.steps_per_epoch
        ):  # the last step is followed by the epoch's line
            self._write(self._line(step) + "\n")

    def epoch(self, values: dict[str, float]) -> None:
        line = f"epoch {self.current_epoch + 1}/{self._epochs}  {_means(values)}"
        if "val_loss" in values:
            line += f"  |  validation: loss {values['val_loss']:.4f}"
            line += f"  top-1 {values['val_top1']:.2%}"
            if self.loop.training.shards.num_classes > _LEAST_FOR_TOP5:
                line += f"  top-5 {values['val_top5']:.2%}"
        if "val_raw_top1" in values:
            line += f"  (not averaged: {values['val_raw_top1']:.2%})"
        skipped = f"  corrupt records skipped: {values['skipped']}" if values["skipped"] else ""
        self._write(("\r\x1b[K" if self._on_terminal else "") + line + self._speed(values) + skipped + "\n")

    def on_test_begin(self, logs: Any = None) -> None:
        self._validation_began = time.monotonic()

    def on_test_end(self, logs: Any = None) -> None:
        self._validation_seconds = time.monotonic() - self._validation_began

    def _line(self, step: int) -> str:
        totals = self.loop.epoch_totals
        position = f"epoch {self.current_epoch + 1}/{self._epochs}  {step + 1}/{self.loop.steps_per_epoch}"
        return f"{position}{self._left(step)}  {_means(totals.means())}{self._speed(totals.speed())}"

    def _left(self, step: int) -> str:
        """The time left of the whole run, if the speed is known."""
        if not self.loop.totals.images:
            return ""
        seconds_per_step = self.loop.totals.seconds / self.loop.totals.images * self.loop.training.global_batch
        epochs = self._epochs - self.current_epoch
        steps = epochs * self.loop.steps_per_epoch - step - 1
        return f"  {duration(steps * seconds_per_step + epochs * self._validation_seconds)} left"

    def _speed(self, values: dict[str, float]) -> str:
        """Images per second in total and, of several replicas, of each; and the wait for data."""
        if "images_per_second" not in values:
            return ""
        rate, replicas = values["images_per_second"], self.loop.training.replicas
        each = f" ({replicas} × {rate / replicas:.0f})" if replicas > 1 else ""
        storage = f", {values['storage_wait']:.0%} for storage" if values["storage_wait"] >= SHOWN_WAIT else ""
        return f"  {rate:.0f} images/s{each}  data wait {values['data_wait']:.0%}{storage}"

    def _write(self, text: str) -> None:
        self._drawn = time.monotonic()
        self._line_is_open = not text.endswith("\n")
        self._stream.write(text)
        self._stream.flush()


class JsonLines(Reporter):
    """Appends to log.jsonl line by line, so that a run can be followed, also one that is interrupted.

    Args:
        loop: the loop that is reported.
        path: the file.
        epochs: epochs of the whole run.
    """

    def __init__(self, loop: Loop, path: Path, epochs: int) -> None:
        super().__init__(loop)
        self._file = AppendFile(path)
        self._epochs = epochs

    def on_train_begin(self, logs: Any = None) -> None:
        self._write(
            "resume" if self.loop.global_step else "start",
            version=LOG_VERSION,
            epochs=self._epochs,
            steps_per_epoch=self.loop.steps_per_epoch,
            global_batch=self.loop.training.global_batch,
            replicas=self.loop.training.replicas,
            global_step=self.loop.global_step,
        )

    def step(self, step: int, values: dict[str, float]) -> None:
        self._write("step", epoch=self.current_epoch, step=step, global_step=self.loop.global_step, **values)

    def epoch(self, values: dict[str, float]) -> None:
        self._write("epoch", epoch=self.current_epoch, global_step=self.loop.global_step, **values)

    def on_train_end(self, logs: Any = None) -> None:
        self._write("end", global_step=self.loop.global_step)

    def _write(self, event: str, **values: Any) -> None:
        # JSON has no NaN and no infinity: they become null.
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"event": event, "time": round(time.time(), 3), **known}, allow_nan=False)
        self._file.append((line + "\n").encode())


class SummaryCsv(Reporter):
    """Appends a line to summary.csv for each epoch: the columns `SUMMARY`, empty if a run has no such number."""

    def __init__(self, loop: Loop, path: Path) -> None:
        super().__init__(loop)
        self._file = AppendFile(path, (",".join(SUMMARY) + "\n").encode())

    def epoch(self, values: dict[str, float]) -> None:
        known = {**values, "epoch": self.current_epoch, "global_step": self.loop.global_step}
        line = ",".join(str(known.get(name, "")) for name in SUMMARY)
        self._file.append((line + "\n").encode())


def fitted(line: str, columns: int) -> str:
    """Shortens a line to a number of columns: with shorter words first, then by cutting it off."""
    for long, short in (("images/s", "img/s"), ("data wait", "wait"), ("  ", " "), (" left", "")):
        if len(line) > columns:
            line = line.replace(long, short)
    return line[:columns]


def duration(seconds: float) -> str:
    """A duration as 0:07, 12:34 or 1:23:45."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _means(values: dict[str, float]) -> str:
    return f"loss {values['loss']:.4f}  top-1 {values['top1']:.1%}" if "loss" in values else "loss –"
