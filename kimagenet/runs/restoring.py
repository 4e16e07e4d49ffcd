"""Puts the newest good checkpoint of a run back, so that the run continues at its next step."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kimagenet.runs.checkpoint import Checkpoint, DamagedCheckpoint
from kimagenet.runs.directory import RunDirectory
from kimagenet.training.loop import Loop
from kimagenet.training.results import Position, Totals
from kimagenet.training.unfreezing import Unfreezing
from pipelines.errors import UserError
from pipelines.system.files import remove_leftovers

_log = logging.getLogger(__name__)

_ELSEWHERE = "start again in another output folder"


def restore(
    loop: Loop,
    run: RunDirectory,
    is_chief: bool = True,
    dataset: dict[str, str] | None = None,
    unfreezing: Unfreezing | None = None,
) -> Position:
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
        dataset: the `identity` of the data set; None: that of the checkpoint. With another one the best model and the
            losses of early_stopping and reduce_on_plateau begin again, and records that were skipped in splits with
            other shards are read again.
        unfreezing: of the run; it is done if it was done before the checkpoint.

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
        if unfreezing and _is_unfrozen(checkpoint.state, loop):
            unfreezing.unfreeze()
        _assign(loop, checkpoint, path)
        changed = _other_data(checkpoint.state, run, dataset)
        corrupt = checkpoint.state.get("corrupt", [])
        loop.skip_again([line for line in corrupt if f"{line['split']} shards" not in changed])
        if is_chief:
            run.cut_logs(checkpoint.state["log_sizes"])
            if changed:
                _set_aside(run, changed)
        return _position(checkpoint.state, loop.steps_per_epoch, has_other_data=bool(changed))
    if found:
        raise UserError("no checkpoint can be read", path=run.checkpoints, remedy=_ELSEWHERE, setting="output")
    if is_chief:
        run.cut_logs({})
    return Position()


def _assign(loop: Loop, checkpoint: Checkpoint, path: Path) -> None:
    """Puts the values of a checkpoint into the loop's variables."""
    shapes = [tuple(array.shape) for array in checkpoint.arrays]
    if shapes != [tuple(variable.shape) for variable in loop.variables]:
        what = "its network or optimizer is not the one that this recipe makes in this version"
        raise UserError(what, path=path, remedy=_ELSEWHERE, setting="output")
    with loop.training.strategy.scope():
        for variable, array in zip(loop.variables, checkpoint.arrays, strict=True):
            variable.assign(array)


def _is_unfrozen(state: dict[str, Any], loop: Loop) -> bool:
    """Whether a checkpoint has the optimizer state of other weights than those that are trained at the start."""
    return state.get("trained_weights") not in (None, len(loop.model.trainable_variables))


def _other_data(state: dict[str, Any], run: RunDirectory, dataset: dict[str, str] | None) -> list[str]:
    """The parts of the data set that are others than those of a checkpoint. A quarantine alone is no other data."""
    if dataset is None:
        return []
    known = state.get("identity", run.read_info().get("identity", {}))
    names = (name for name in sorted(known | dataset) if not name.endswith("quarantine"))
    return [name for name in names if known.get(name) != dataset.get(name)]


def _set_aside(run: RunDirectory, changed: list[str]) -> None:
    """Renames the models of the data set before, because run.json describes the new one."""
    names = []
    for path in (run.best, run.last, run.final):
        if path.exists():
            path.replace(path.with_stem(f"{path.stem}-of-earlier-data"))
            names.append(path.name)
    renamed = f"; {', '.join(names)} renamed to *-of-earlier-data.keras" if names else ""
    what = f"the data set has other {', '.join(changed)}; the best model and the lowest loss begin again with this data"
    _log.warning("%s: %s%s", run.path, what, renamed)


def _position(state: dict[str, Any], steps_per_epoch: int, has_other_data: bool) -> Position:
    epoch, best, since = state["epoch"], state["best_top1"], state.get("data_epoch", 0)
    if has_other_data:
        best, since = Position.best_top1, epoch
    if state["step"] and state["steps_per_epoch"] != steps_per_epoch:
        _log.warning("an epoch has another number of steps than before: epoch %d starts again", epoch + 1)
        return Position(epoch, best_top1=best, data_epoch=since)
    return Position(epoch, state["step"], Totals(**state["totals"]), best, since)


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
