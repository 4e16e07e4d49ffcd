"""Puts the newest good checkpoint of a run back, so that the run continues at its next step."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kimagenet.runs.checkpoint import Checkpoint, DamagedCheckpoint
from kimagenet.runs.directory import RunDirectory
from kimagenet.training.loop import Loop
from kimagenet.training.results import Position, Totals
from pipelines.errors import UserError
from pipelines.system.files import remove_leftovers

_log = logging.getLogger(__name__)

_ELSEWHERE = "start again in another output folder"


def restore(loop: Loop, run: RunDirectory, is_chief: bool = True) -> Position:
    """Puts the newest good checkpoint of a run into the loop's variables.

    Files that are damaged or of another run are passed over with a warning. The logs are cut back to the state of the
    checkpoint, so that steps which run again are not listed twice. Of several workers only the chief changes files.

    The number of workers may differ from before. A checkpoint contains what all workers share: weights, optimizer
    state, the sums of iter_size added up, the mean of moving statistics. The global batch of a step is the plan's for
    (seed, epoch, step), and the workers divide it: the same records with the same augmentation follow on any number.
    The draws of mixing and dropout belong to a replica, so they differ from there on.

    Args:
        loop: the loop of the same recipe.
        run: the run.
        is_chief: whether this process writes files.

    Returns:
        Where the loop has to start: the beginning without any checkpoint; the beginning of the epoch if the number of
        steps in an epoch has changed.

    Raises:
        UserError: there are checkpoints, but none is good, or it belongs to another network or optimizer.
    """
    found = run.find_checkpoints()
    if is_chief:
        for folder in (run.path, run.checkpoints):
            remove_leftovers(folder)
    for path, checkpoint in _readable(run):
        shapes = [tuple(array.shape) for array in checkpoint.arrays]
        if shapes != [tuple(variable.shape) for variable in loop.variables]:
            what = "its network or optimizer is not the one that this recipe makes in this version"
            raise UserError(what, path=path, remedy=_ELSEWHERE, setting="output")
        with loop.training.strategy.scope():
            for variable, array in zip(loop.variables, checkpoint.arrays, strict=True):
                variable.assign(array)
        loop.skip_again(checkpoint.state.get("corrupt", []))
        if is_chief:
            run.cut_logs(checkpoint.state["log_sizes"])
        return _position(checkpoint.state, loop.steps_per_epoch)
    if found:
        raise UserError("no checkpoint can be read", path=run.checkpoints, remedy=_ELSEWHERE, setting="output")
    if is_chief:
        run.cut_logs({})
    return Position()


def _position(state: dict[str, Any], steps_per_epoch: int) -> Position:
    epoch, best = state["epoch"], state["best_top1"]
    if state["step"] and state["steps_per_epoch"] != steps_per_epoch:
        _log.warning("an epoch has another number of steps than before: epoch %d starts again", epoch + 1)
        return Position(epoch, best_top1=best)
    return Position(epoch, state["step"], Totals(**state["totals"]), best)


def _readable(run: RunDirectory) -> Iterator[tuple[Path, Checkpoint]]:
    for path in run.find_checkpoints():
        try:
            checkpoint = Checkpoint.read(path)
            _check_belongs(checkpoint.state, run, path)
            yield path, checkpoint
        except DamagedCheckpoint as error:
            _log.warning("%s: %s; using the one before", path, error)


def _check_belongs(state: dict[str, Any], run: RunDirectory, path: Path) -> None:
    if state["run"] != run.id:
        raise DamagedCheckpoint("it belongs to another run")
    step = state["epoch"] * state["steps_per_epoch"] + state["step"]
    if path != run.checkpoint(step):
        raise DamagedCheckpoint(f"its name is wrong: it contains step {step}")
