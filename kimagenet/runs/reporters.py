"""What a run says: a progress line, log.jsonl, summary.csv. Each is a Keras callback beside a `Loop`.

log.jsonl has one JSON object per line. All have `event` and `time` (Unix seconds):

* `start`, at the beginning, and `resume` where a run goes on: `version` (1), `epochs`, `steps_per_epoch`,
  `global_batch`, `replicas` (devices that share it), `global_step`. Lines of steps that a resumed run does again are
  removed before
* `step`, every --log-steps steps and after the last of an epoch: `epoch` and `step` (from 0), `global_step` (steps
  done), `learning_rate`, and of the steps since the last such line or a resume `loss`, `top1` (means), and, without
  the first few steps of a run, `images_per_second` (all replicas together) and `data_wait` (the share of the time
  spent waiting for data)
* `epoch`: `epoch`, `global_step`, `learning_rate` (the last), `loss`, `top1`, `images_per_second`, `data_wait` of the
  epoch; `skipped`, the corrupt records that the run goes on without so far (see kimagenet.training.recovery); `val_loss`,
  `val_top1`, `val_top5` where there is a validation split, and `val_raw_loss`, `val_raw_top1`, `val_raw_top5` beside
  them if the recipe averages weights: of the weights as they are
* `end`: `global_step`; it is missing if the run was cut off

summary.csv has the same numbers of each epoch, for spreadsheets; `SUMMARY` names its columns.
"""

import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import keras

from kimagenet.runs.append_file import LogFile
from kimagenet.training.loop import Loop
from kimagenet.training.results import Totals

LOG_VERSION = 1

SUMMARY = (
    *("epoch", "global_step", "learning_rate", "loss", "top1", "val_loss", "val_top1", "val_top5"),
    *("val_raw_loss", "val_raw_top1", "val_raw_top5", "skipped", "images_per_second", "data_wait"),
)

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
        self._line_is_open = False
        self._validation_began = self._validation_seconds = 0.0

    def close(self) -> None:
        """Ends a line that the terminal would rewrite, so that what is said next begins a new one."""
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
        if not self._on_terminal and step + 1 < self.loop.steps_per_epoch:  # at its end the epoch's own line comes
            self._write(self._line(step) + "\n")

    def epoch(self, values: dict[str, float]) -> None:
        line = f"epoch {self.current_epoch + 1}/{self._epochs}  {_means(values)}"
        if "val_loss" in values:
            line += f"  |  validation: loss {values['val_loss']:.4f}"
            line += f"  top-1 {values['val_top1']:.2%}  top-5 {values['val_top5']:.2%}"
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
        """The time left of the whole run, once the speed is known."""
        if not self.loop.totals.images:
            return ""
        seconds_per_step = self.loop.totals.seconds / self.loop.totals.images * self.loop.training.global_batch
        epochs = self._epochs - self.current_epoch
        steps = epochs * self.loop.steps_per_epoch - step - 1
        return f"  {duration(steps * seconds_per_step + epochs * self._validation_seconds)} left"

    def _speed(self, values: dict[str, float]) -> str:
        """In total, and on several replicas on each of them."""
        if "images_per_second" not in values:
            return ""
        rate, replicas = values["images_per_second"], self.loop.training.replicas
        each = f" ({replicas} × {rate / replicas:.0f})" if replicas > 1 else ""
        return f"  {rate:.0f} images/s{each}  data wait {values['data_wait']:.0%}"

    def _write(self, text: str) -> None:
        self._drawn = time.monotonic()
        self._line_is_open = not text.endswith("\n")
        self._stream.write(text)
        self._stream.flush()


class JsonLines(Reporter):
    """Appends to log.jsonl line by line, so that a run can be followed and a cut-off one be read."""

    def __init__(self, loop: Loop, path: Path, epochs: int) -> None:
        super().__init__(loop)
        self._file = LogFile(path)
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
        # JSON knows no NaN and no infinity: they are null.
        known = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"event": event, "time": round(time.time(), 3), **known}, allow_nan=False)
        self._file.append((line + "\n").encode())


class SummaryCsv(Reporter):
    """Appends a line to summary.csv for each epoch: the columns `SUMMARY`, empty where a run has no such number."""

    def __init__(self, loop: Loop, path: Path) -> None:
        super().__init__(loop)
        self._file = LogFile(path, (",".join(SUMMARY) + "\n").encode())

    def epoch(self, values: dict[str, float]) -> None:
        known = {**values, "epoch": self.current_epoch, "global_step": self.loop.global_step}
        line = ",".join(str(known.get(name, "")) for name in SUMMARY)
        self._file.append((line + "\n").encode())


def fitted(line: str, columns: int) -> str:
    """The line in so few columns: with shorter words first, then cut off."""
    for long, short in (("images/s", "img/s"), ("data wait", "wait"), ("  ", " "), (" left", "")):
        if len(line) > columns:
            line = line.replace(long, short)
    return line[:columns]


def duration(seconds: float) -> str:
    """0:07, 12:34, 1:23:45."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _means(values: dict[str, float]) -> str:
    return f"loss {values['loss']:.4f}  top-1 {values['top1']:.1%}" if "loss" in values else "loss –"
