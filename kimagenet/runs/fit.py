"""Trains a run and leaves its run directory complete, however it ends."""

import atexit
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from signal import SIGINT, SIGTERM, getsignal, signal
from typing import Any

import keras
import tensorflow as tf

from kimagenet.cli import END_SIGNALS, EXIT_RESUME, heard
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory, save_model
from kimagenet.runs.reporters import JsonLines, ProgressLine, SummaryCsv
from kimagenet.runs.saving import KeepCheckpoints, KeepLastAndBest
from kimagenet.runs.tensorboard import TensorBoardEvents
from kimagenet.training.loop import Loop, NonFiniteLoss, Stopped
from kimagenet.training.results import Position
from pipelines.errors import RunFailed, ToBeResumed, UserError, reason
from pipelines.system.files import write_atomic

_log = logging.getLogger(__name__)

_URGENT = {SIGINT, SIGTERM}  # the second of them stops at once


def fit(
    loop: Loop,
    epochs: int,
    run: RunDirectory,
    start: Position,
    *,
    is_chief: bool = True,
    checkpoint_steps: int = 1000,
    keep_checkpoints: int = 3,
    more: Sequence[keras.callbacks.Callback] = (),
) -> int:
    """Trains from `start` to the end.

    After a signal that asks to end (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1), or a batch that cannot be read, there is a
    checkpoint of the last step. After a loss that is not finite there are nonfinite.json and nonfinite.ckpt.

    Args:
        loop: the loop, restored to `start`.
        epochs: epochs of the whole run.
        run: the run directory, begun.
        start: where to start.
        is_chief: whether this process writes files.
        checkpoint_steps: steps from one checkpoint to the next.
        keep_checkpoints: how many checkpoints to keep.
        more: further callbacks.

    Returns:
        The exit code: 0, or `EXIT_RESUME` if it was stopped.

    Raises:
        RunFailed: a batch cannot be read, or a loss is not finite.
        ToBeResumed: a file could not be written, or another worker was lost.
    """
    checkpoints = KeepCheckpoints(loop, run if is_chief else None, checkpoint_steps, keep_checkpoints)
    progress = ProgressLine(loop, epochs)
    # The checkpoint of an epoch is the last: it has what the others changed.
    callbacks = [*(_writers(loop, epochs, run, progress) if is_chief else ()), *more, checkpoints]
    with stop_on_signals(loop.request_stop, is_chief):  # also while files are written: some signals come twice
        try:
            with closing(progress):
                loop.fit(epochs, callbacks, start)
        except Stopped:
            return _end_stopped(loop, epochs, run, checkpoints, is_chief)
        except NonFiniteLoss as error:
            raise _explained(error, loop, run, checkpoints, is_chief) from None
        except UserError:
            if not loop.training.has_peers:  # with other workers, taking the values needs all of them
                checkpoints.write_now()
            raise
        except tf.errors.OpError as error:
            if not loop.training.has_peers:
                raise
            raise _lost_worker(loop, run, error) from None
        finally:
            checkpoints.close()
            _leave_blocked_feeds(loop)
        if is_chief:
            _save_final(loop, run)
    return 0


def _leave_blocked_feeds(loop: Loop) -> None:
    """If a read of one split does not return, closing the other split may block as well: neither will be closed."""
    feeds = [feed for feed in (loop.training, loop.validation) if feed is not None]
    is_blocked = any(feed.is_blocked for feed in feeds)
    for feed in feeds:
        feed.is_blocked = is_blocked


def _lost_worker(loop: Loop, run: RunDirectory, error: tf.errors.OpError) -> ToBeResumed:
    atexit.register(os._exit, EXIT_RESUME)  # TensorFlow's own exit would wait for the lost worker
    what = f"another worker was lost at step {loop.global_step:,} ({type(error).__name__})"
    return ToBeResumed(what, path=run.path, remedy="start all workers again to resume the run", setting="resume")


def _writers(loop: Loop, epochs: int, run: RunDirectory, progress: ProgressLine) -> list[keras.callbacks.Callback]:
    """The callbacks of the chief, in the order in which they write."""
    return [
        progress,
        JsonLines(loop, run.log, epochs),
        SummaryCsv(loop, run.summary),
        TensorBoardEvents(loop, run.tensorboard, Recipe.load(run.recipe, quiet=True)),
        KeepLastAndBest(loop, run),
    ]


def _end_stopped(loop: Loop, epochs: int, run: RunDirectory, checkpoints: KeepCheckpoints, is_chief: bool) -> int:
    """Saves a run that was stopped; returns the exit code."""
    done = f"stopped after {loop.global_step:,} of {epochs * loop.steps_per_epoch:,} steps"
    if not checkpoints.write_now():
        remedy = (
            "make room, then resume the run: it continues at the last checkpoint that was written, or at the beginning"
        )
        what = f"{done}, but without a checkpoint of the last step"
        raise ToBeResumed(what, path=run.path, remedy=remedy, setting="resume") from None
    if is_chief:
        _save_last(loop, run)
        print(f"{run.path}: {done}", flush=True)
    return EXIT_RESUME


def _save_final(loop: Loop, run: RunDirectory) -> None:
    if loop.model.stop_training:
        print(f"{run.path}: a callback ended the training after step {loop.global_step:,}", flush=True)
    try:
        save_model(loop.model, run.final)
    except OSError as error:
        what = f"not written ({reason(error)}), but the training is complete"
        remedy = "make room, then resume the run to write it"
        raise ToBeResumed(what, path=run.final, remedy=remedy, setting="resume") from None


def _save_last(loop: Loop, run: RunDirectory) -> None:
    """Saves last.keras, for use before the run is resumed. Resuming needs the checkpoint only."""
    try:
        with loop.evaluation_weights():
            save_model(loop.model, run.last)
    except OSError as error:
        _log.warning("%s: not written (%s)", run.last, reason(error))


def _explained(
    error: NonFiniteLoss, loop: Loop, run: RunDirectory, checkpoints: KeepCheckpoints, is_chief: bool
) -> RunFailed:
    """Saves what helps to find the cause: the records of the batch, and the state after its update."""
    has_state = checkpoints.write_now(run.checkpoints / "nonfinite.ckpt")
    if not is_chief:
        return RunFailed(str(error))
    records = loop.training.records(error.epoch, error.step)
    path = run.path / "nonfinite.json"
    found = {"epoch": error.epoch, "step": error.step, "records": records}
    try:
        write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())
        where = f"in {path.name}"
    except OSError as failure:
        where = f"{', '.join(records)} ({path.name} was not written: {reason(failure)})"
    state = "the state after it is in checkpoints/nonfinite.ckpt" if has_state else "its state was not written"
    return RunFailed(
        f"{error}; the records of that batch are {where}, {state}",
        path=run.path,
        remedy="choose a lower initial_lr and resume the run",
        setting="force_resume",
    )


@contextmanager
def stop_on_signals(request_stop: Callable[[], None], is_chief: bool = True) -> Iterator[None]:
    """Within it, a signal that asks the run to end calls `request_stop`.

    A second Ctrl-C or SIGTERM raises `KeyboardInterrupt`. SIGHUP and SIGUSR1 never do: a connection that breaks may
    send SIGHUP several times, and SLURM sends SIGTERM after SIGUSR1.

    Args:
        request_stop: what to call.
        is_chief: whether to print a message.
    """
    requested: set[int] = set()

    def handle(number: int, _: Any) -> None:
        if number in _URGENT and requested & _URGENT:
            raise KeyboardInterrupt("the run can be resumed from its last checkpoint")
        is_first = not requested
        requested.add(number)
        if is_first:
            if is_chief:
                print("\nstopping after this step; a second Ctrl-C or SIGTERM stops at once", flush=True)
            request_stop()

    before = {number: getsignal(number) for number in (SIGINT, *heard(*END_SIGNALS))}
    for number in before:
        signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal(number, handler)
