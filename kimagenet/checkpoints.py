"""What a run keeps on its way: checkpoints to resume from, and the models of the last and of the best epoch."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from kimagenet.checkpoint_file import Checkpoint, DamagedCheckpoint, remove_leftovers
from kimagenet.loop import Loop, Position, Totals
from kimagenet.run import RunDirectory, save_model
from pipelines.errors import RunFailed, UserError

logger = logging.getLogger(__name__)


class KeepLastAndBest(keras.callbacks.Callback):
    """After each epoch last.keras; best.keras if validation top-1 is higher than in every epoch before.

    A disk that is full is reported, and the training goes on.
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
                    logger.warning("%s: not written (%s); training goes on", path, error.strerror or error)


class KeepCheckpoints(keras.callbacks.Callback):
    """A checkpoint after every `every` steps and after each epoch, written in the background; the last `keep` stay.

    It has to be the last of the callbacks: what the others wrote to log.jsonl belongs to it. A write that fails is
    reported, the checkpoints before it stay, and the training goes on. With several workers all of them take the
    values (for some that is a collective operation), and only one, the one with a run directory, writes them.
    """

    needs_every_loss = False

    def __init__(self, loop: Loop, run: RunDirectory | None, every: int, keep: int) -> None:
        super().__init__()
        self._loop = loop
        self._run = run
        self._every = every
        self._keep = keep
        self._writer = ThreadPoolExecutor(1, "kimagenet-checkpoint")
        self._writing: Future[None] | None = None
        self._written = -1  # the step of the last one that lies on the disk

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # The last step's comes after its epoch's validation.
        if self._loop.global_step % self._every == 0 and batch + 1 < self._loop.steps_per_epoch:
            self._take()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._take()

    def on_train_end(self, logs: Any = None) -> None:
        self.close()

    def write_now(self, path: Path | None = None) -> None:
        """Writes a checkpoint of this moment, under a name of its own or as any other; raises `RunFailed`."""
        self._take(path)
        self._wait()
        if self._run and self._written != self._loop.global_step:
            raise RunFailed(
                f"{self._run.checkpoints}: the last checkpoint could not be written; the run can be resumed from an "
                "older one, if there is one"
            )

    def close(self) -> None:
        """Waits for the last write."""
        self._wait()
        self._writer.shutdown()

    def _take(self, path: Path | None = None) -> None:
        self._wait()  # never more than one copy of the values in memory
        arrays = self._loop.values()
        if self._run is None:
            return
        log_bytes = self._run.log.stat().st_size if self._run.log.exists() else 0
        state = {**asdict(self._loop.position), "steps_per_epoch": self._loop.steps_per_epoch, "log_bytes": log_bytes}
        state["corrupt"] = list(self._loop.training.corrupt.lines)
        checkpoint = Checkpoint(arrays, state)
        step = self._loop.global_step
        path = path or self._run.checkpoint(step)
        self._writing = self._writer.submit(self._write, checkpoint, self._run, path, step)

    def _write(self, checkpoint: Checkpoint, run: RunDirectory, path: Path, step: int) -> None:
        try:
            checkpoint.write(path)
        except OSError as error:
            logger.warning("%s: not written (%s); older ones stay, training goes on", path, error.strerror or error)
            return
        self._written = step
        for old in run.find_checkpoints()[self._keep :]:
            old.unlink(missing_ok=True)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None


def restore(loop: Loop, run: RunDirectory, is_chief: bool = True) -> Position:
    """Puts the newest good checkpoint of a run into the loop's variables; where the loop has to start.

    Files that are damaged are named and passed over. log.jsonl is cut back to what the checkpoint knows, so that steps
    which run again are not listed twice; only the chief of several workers does so. Without any checkpoint the position
    is the beginning; where an epoch has another number of steps than it had, that of the epoch. Raises `UserError` if
    none of several checkpoints is good, or it belongs to another network or optimizer.
    """
    found = run.find_checkpoints()
    if is_chief:
        remove_leftovers(run.checkpoints)
    for path, checkpoint in _readable(found):
        shapes = [tuple(array.shape) for array in checkpoint.arrays]
        if shapes != [tuple(variable.shape) for variable in loop.variables]:
            raise UserError(f"{path}: is of another network or optimizer than this run's recipe and release make")
        with loop.training.strategy.scope():
            for variable, array in zip(loop.variables, checkpoint.arrays, strict=True):
                variable.assign(array)
        loop.skip_as_before(checkpoint.state.get("corrupt", []))
        if is_chief:
            run.cut_log(checkpoint.state["log_bytes"])
        return _position(checkpoint.state, loop.steps_per_epoch)
    if found:
        raise UserError(f"{run.checkpoints}: no checkpoint can be read; start anew with another --output")
    if is_chief:
        run.cut_log(0)
    return Position()


def _position(state: dict[str, Any], steps_per_epoch: int) -> Position:
    epoch, best = state["epoch"], state["best_top1"]
    if state["step"] and state["steps_per_epoch"] != steps_per_epoch:
        logger.warning("an epoch has other steps than before: epoch %d begins anew", epoch + 1)
        return Position(epoch, best_top1=best)
    return Position(epoch, state["step"], Totals(**state["totals"]), best)


def _readable(paths: list[Path]) -> Iterator[tuple[Path, Checkpoint]]:
    for path in paths:
        try:
            yield path, Checkpoint.read(path)
        except DamagedCheckpoint as error:
            logger.warning("%s: %s; taking the one before", path, error)
