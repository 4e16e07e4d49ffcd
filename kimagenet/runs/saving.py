"""The callbacks that save a run: checkpoints to resume from, and the models of the last and the best epoch."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from kimagenet.runs.checkpoint import Checkpoint
from kimagenet.runs.directory import RunDirectory, save_model
from kimagenet.training.loop import Loop
from pipelines.errors import reason

_log = logging.getLogger(__name__)


class KeepLastAndBest(keras.callbacks.Callback):
    """Saves last.keras after each epoch, and best.keras if validation top-1 is higher than in every epoch before.

    If the disk is full, a warning says so and training continues.
    """

    def __init__(self, loop: Loop, run: RunDirectory) -> None:
        super().__init__()
        self._loop = loop
        self._run = run

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with self._loop.evaluation_weights():
            for path in [self._run.last, *([self._run.best] if self._loop.is_best else [])]:
                try:
                    save_model(self._loop.model, path)
                except OSError as error:
                    _log.warning("%s: not written (%s); training continues", path, reason(error))


class KeepCheckpoints(keras.callbacks.Callback):
    """Saves a checkpoint every few steps and after each epoch, in the background.

    It has to be the last callback: a checkpoint includes what the others wrote to log.jsonl. If a write fails, a
    warning says so, the earlier checkpoints stay, and training continues. With several workers all of them copy the
    values (which may be a collective operation), and one writes them.

    Args:
        loop: the loop that is saved.
        run: where to write; None: this worker does not write.
        every: steps from one checkpoint to the next.
        keep: how many checkpoints to keep, the newest ones.
    """

    needs_every_loss = False

    def __init__(self, loop: Loop, run: RunDirectory | None, every: int, keep: int) -> None:
        super().__init__()
        self._loop = loop
        self._run = run
        info = run.read_info() if run else {}
        self._owner = {"run": info.get("id", ""), "identity": info.get("identity", {})}
        self._every = every
        self._keep = keep
        self._writer = ThreadPoolExecutor(1, "kimagenet-checkpoint")
        self._writing: Future[None] | None = None
        self._written = -1  # the step of the last one on disk

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # The checkpoint of an epoch's last step follows its validation.
        if self._loop.global_step % self._every == 0 and batch + 1 < self._loop.steps_per_epoch:
            self._take()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._take()

    def on_train_end(self, logs: Any = None) -> None:
        self.close()

    def write_now(self, path: Path | None = None) -> bool:
        """Writes a checkpoint now and waits for it.

        Args:
            path: the file; None: named after the step, as all others.

        Returns:
            Whether it was written, or this worker does not write.
        """
        self._take(path)
        self._wait()
        return self._run is None or self._written == self._loop.global_step

    def close(self) -> None:
        """Waits for the last write to end."""
        self._wait()
        self._writer.shutdown()

    def _take(self, path: Path | None = None) -> None:
        self._wait()  # only one copy of the values in memory
        arrays = self._loop.values()
        if self._run is None:
            return
        own = {"steps_per_epoch": self._loop.steps_per_epoch, "log_sizes": self._run.log_sizes(), **self._owner}
        own["corrupt"] = list(self._loop.training.corrupt.lines)
        own["trained_weights"] = len(self._loop.model.trainable_variables)
        checkpoint = Checkpoint(arrays, {**asdict(self._loop.position), **own})
        step = self._loop.global_step
        path = path or self._run.checkpoint(step)
        self._writing = self._writer.submit(self._write, checkpoint, self._run, path, step)

    def _write(self, checkpoint: Checkpoint, run: RunDirectory, path: Path, step: int) -> None:
        try:
            checkpoint.write(path)
        except OSError as error:
            _log.warning("%s: not written (%s); earlier ones stay", path, reason(error))
            return
        self._written = step
        # Checkpoints of later steps are damaged, or from before a forced resume.
        older = [other for other in run.find_checkpoints() if other.name <= run.checkpoint(step).name]
        for other in {*run.find_checkpoints()} - {*older[: self._keep]}:
            other.unlink(missing_ok=True)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None
