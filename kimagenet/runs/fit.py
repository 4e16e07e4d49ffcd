"""Carries a training out and leaves its run directory complete, whatever ends it."""

import atexit
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from signal import SIGINT, SIGTERM, getsignal, signal
from typing import Any

import tensorflow as tf

from kimagenet.cli import EXIT_RESUME
from kimagenet.runs.directory import RunDirectory, save_model
from kimagenet.runs.reporters import JsonLines, ProgressLine, SummaryCsv
from kimagenet.runs.saving import KeepCheckpoints, KeepLastAndBest
from kimagenet.runs.tensorboard import TensorBoardEvents
from kimagenet.training.loop import Loop, NonFiniteLoss, Stopped
from kimagenet.training.results import Position
from pipelines.errors import RunFailed, ToBeResumed, UserError
from pipelines.system.files import write_atomic

logger = logging.getLogger(__name__)


def fit(
    loop: Loop,
    epochs: int,
    run: RunDirectory,
    start: Position,
    *,
    is_chief: bool = True,
    checkpoint_steps: int = 1000,
    keep_checkpoints: int = 3,
) -> int:
    """Trains from `start` to the end; returns the exit code.

    A signal to stop and a batch that cannot be read leave a checkpoint of the last step; a loss that is not finite
    leaves nonfinite.json and nonfinite.ckpt. Of several workers only the chief writes. Raises `UserError`s.
    """
    checkpoints = KeepCheckpoints(loop, run if is_chief else None, checkpoint_steps, keep_checkpoints)
    callbacks: list[Any] = [checkpoints]
    progress = ProgressLine(loop, epochs)
    if is_chief:
        reporters = [
            progress,
            JsonLines(loop, run.log, epochs),
            SummaryCsv(loop, run.summary),
            TensorBoardEvents(loop, run.tensorboard),
        ]
        callbacks = [*reporters, KeepLastAndBest(loop, run), checkpoints]
    try:
        with stop_on_signals(loop.request_stop), closing(progress):
            loop.fit(epochs, callbacks, start)
    except Stopped:
        if not checkpoints.write_now():
            raise ToBeResumed(
                f"{run.path}: stopped, but without a checkpoint of the last step; make room, then the same command "
                "again goes on from the one before, or from the beginning if there is none"
            ) from None
        if is_chief:
            _save_last(loop, run)
        done = f"stopped after {loop.global_step:,} of {epochs * loop.steps_per_epoch:,} steps"
        print(f"{done}; the same command again, or --resume --output {run.path}, goes on from there", flush=True)
        return EXIT_RESUME
    except NonFiniteLoss as error:
        raise _explained(error, loop, run, checkpoints, is_chief) from None
    except UserError:
        if not loop.training.has_peers:  # the others' part of the values cannot be had
            checkpoints.write_now()
        raise
    except tf.errors.OpError as error:
        if not loop.training.has_peers:
            raise
        atexit.register(os._exit, EXIT_RESUME)  # TensorFlow's own farewell would wait for the lost worker
        raise ToBeResumed(
            f"another worker was lost at step {loop.global_step:,} ({type(error).__name__}); start all workers again "
            f"with --resume --output {run.path}"
        ) from None
    finally:
        checkpoints.close()
    if is_chief:
        _save_final(loop, run)
    return 0


def _save_final(loop: Loop, run: RunDirectory) -> None:
    try:
        save_model(loop.model, run.final)
    except OSError as error:
        raise ToBeResumed(
            f"{run.final}: not written ({error.strerror or error}); the training is done: make room, then the same "
            "command again writes it"
        ) from None


def _save_last(loop: Loop, run: RunDirectory) -> None:
    """last.keras for those who want to use what there is; the checkpoint is what counts."""
    try:
        with loop.evaluation_weights():
            save_model(loop.model, run.last)
    except OSError as error:
        logger.warning("%s: not written (%s)", run.last, error.strerror or error)


def _explained(
    error: NonFiniteLoss, loop: Loop, run: RunDirectory, checkpoints: KeepCheckpoints, is_chief: bool
) -> RunFailed:
    """Keeps what there is to look at: the records of the batch, and the state after its update."""
    state = "the state in nonfinite.ckpt" if checkpoints.write_now(run.checkpoints / "nonfinite.ckpt") else "no state"
    if not is_chief:
        return RunFailed(str(error))
    records = loop.training.records(error.epoch, error.step)
    path = run.path / "nonfinite.json"
    try:
        found = {"epoch": error.epoch, "step": error.step, "records": records}
        write_atomic(path, (json.dumps(found, indent=1) + "\n").encode())
    except OSError:
        return RunFailed(f"{error}; there is no room for {path}; the records of that batch are {', '.join(records)}")
    return RunFailed(f"{error}; the records of that batch are in {path}, {state}; try a lower rate and --force-resume")


@contextmanager
def stop_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `request_stop` once; the second one raises `KeyboardInterrupt`."""
    requested = False

    def handle(number: int, _: Any) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt("left at once; the run can be resumed from its last checkpoint")
        requested = True
        print("\nstopping after this step (once more: at once)", flush=True)
        request_stop()

    before = {number: getsignal(number) for number in (SIGINT, SIGTERM)}
    for number in before:
        signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal(number, handler)
