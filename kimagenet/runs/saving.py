"""What a run keeps on its way: checkpoints to resume from, and the models of the last and of the best epoch."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from kimagenet.runs.checkpoint import Checkpoint, DamagedCheckpoint, remove_leftovers
from kimagenet.runs.directory import RunDirectory, save_model
from kimagenet.training.loop import Loop
from kimagenet.training.results import Position, Totals
from pipelines.errors import UserError

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
        self._run_id = run.id if run else ""
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

    def write_now(self, path: Path | None = None) -> bool:
        """Writes a checkpoint of this moment, under a name of its own or as any other; whether that went well."""
        self._take(path)
        self._wait()
        return self._run is None or self._written == self._loop.global_step

    def close(self) -> None:
        """Waits for the last write."""
        self._wait()
        self._writer.shutdown()

    def _take(self, path: Path | None = None) -> None:
        self._wait()  # never more than one copy of the values in memory
        arrays = self._loop.values()
        if self._run is None:
            return
        own = {"run": self._run_id, "steps_per_epoch": self._loop.steps_per_epoch, "log_sizes": self._run.log_sizes()}
        own["corrupt"] = list(self._loop.training.corrupt.lines)
        checkpoint = Checkpoint(arrays, {**asdict(self._loop.position), **own})
        step = self._loop.global_step
        path = path or self._run.checkpoint(step)
        self._writing = self._writer.submit(self._write, checkpoint, self._run, path, step)

    def _write(self, checkpoint: Checkpoint, run: RunDirectory, path: Path, step: int) -> None:
        try:
            checkpoint.write(path)
        except OSError as error:
            logger.warning("%s: not written (%s); those before it stay", path, error.strerror or error)
            return
        self._written = step
        # Later ones are damaged, or of the way that a forced resume left.
        older = [other for other in run.find_checkpoints() if other.name <= run.checkpoint(step).name]
        for other in {*run.find_checkpoints()} - {*older[: self._keep]}:
            other.unlink(missing_ok=True)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None


def restore(loop: Loop, run: RunDirectory, is_chief: bool = True) -> Position:
    """Puts the newest good checkpoint of a run into the loop's variables; where the loop has to start.

    Files that are damaged or of another run are named and passed over. The logs are cut back to what the checkpoint
    knows, so that steps which run again are not listed twice; only the chief of several workers does so. Without any
    checkpoint the position is the beginning; where an epoch has another number of steps than it had, that of the epoch.
    Raises `UserError` if none of several checkpoints is good, or it belongs to another network or optimizer.

    The number of workers may be another one than before. A checkpoint holds what all of them share: weights, optimizer
    state, the sums of iter_size added up, the mean of moving statistics. And a step's global batch is the plan's for
    (seed, epoch, step), which the workers divide among them: the same records, drawn alike, follow on any number. What
    belongs to a replica, the draws of mixing and dropout, is another one from there on.
    """
    found = run.find_checkpoints()
    if is_chief:
        for folder in (run.path, run.checkpoints):
            remove_leftovers(folder)
    for path, checkpoint in _readable(run):
        shapes = [tuple(array.shape) for array in checkpoint.arrays]
        if shapes != [tuple(variable.shape) for variable in loop.variables]:
            raise UserError(f"{path}: holds another network or optimizer than this recipe, in this version, makes")
        with loop.training.strategy.scope():
            for variable, array in zip(loop.variables, checkpoint.arrays, strict=True):
                variable.assign(array)
        loop.skip_as_before(checkpoint.state.get("corrupt", []))
        if is_chief:
            run.cut_logs(checkpoint.state["log_sizes"])
        return _position(checkpoint.state, loop.steps_per_epoch)
    if found:
        raise UserError(f"{run.checkpoints}: no checkpoint can be read; start anew with another --output")
    if is_chief:
        run.cut_logs({})
    return Position()


def _position(state: dict[str, Any], steps_per_epoch: int) -> Position:
    epoch, best = state["epoch"], state["best_top1"]
    if state["step"] and state["steps_per_epoch"] != steps_per_epoch:
        logger.warning("an epoch has other steps than before: epoch %d begins anew", epoch + 1)
        return Position(epoch, best_top1=best)
    return Position(epoch, state["step"], Totals(**state["totals"]), best)


def _readable(run: RunDirectory) -> Iterator[tuple[Path, Checkpoint]]:
    for path in run.find_checkpoints():
        try:
            checkpoint = Checkpoint.read(path)
            _check_belongs(checkpoint.state, run, path)
            yield path, checkpoint
        except DamagedCheckpoint as error:
            logger.warning("%s: %s; taking the one before", path, error)


def _check_belongs(state: dict[str, Any], run: RunDirectory, path: Path) -> None:
    if state["run"] != run.id:
        raise DamagedCheckpoint("it is of another run")
    step = state["epoch"] * state["steps_per_epoch"] + state["step"]
    if path != run.checkpoint(step):
        raise DamagedCheckpoint(f"it holds step {step}, not what its name says")
