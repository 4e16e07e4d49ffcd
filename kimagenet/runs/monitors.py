"""What watches the validation loss of a run: the end when it does not fall any more, and a lower learning rate.

Both follow from the losses of all epochs with the present data set. A resumed run takes those of earlier epochs from
log.jsonl, so it decides as a run that was never stopped.
"""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from kimagenet.training.loop import Loop
from pipelines.errors import reason
from pipelines.system.reading import read_file

_log = logging.getLogger(__name__)

_MONITORED = "val_loss"
_LEAST_CHANGE = 1e-4  # of the loss, as Keras' ReduceLROnPlateau


def earlier_losses(log: Path, epochs: int, data_epoch: int = 0) -> list[float]:
    """The validation losses of the epochs before a resume.

    Args:
        log: the log.jsonl of the run.
        epochs: the number of epochs that are done.
        data_epoch: the first of them with the present data set: losses of another one cannot be compared.
    """
    losses: dict[int, float] = {}
    try:
        lines = read_file(log).decode().splitlines() if epochs else []
    except OSError as error:
        _log.warning("%s: not read (%s); early_stopping and reduce_on_plateau begin again", log, reason(error))
        lines = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # cut off in a crash; the epoch is repeated
            continue
        is_epoch = entry.get("event") == "epoch" and entry.get(_MONITORED) is not None
        if is_epoch and data_epoch <= entry.get("epoch", epochs) < epochs:
            losses[entry["epoch"]] = entry[_MONITORED]
    return [losses[epoch] for epoch in sorted(losses)]


class Monitor(keras.callbacks.Callback, ABC):
    """Counts the validations since the loss was lowest.

    Args:
        loop: the loop.
        patience: how many validations without a lower loss it accepts.
        earlier: the losses before a resume.
        least_change: how much lower a loss has to be.
    """

    needs_every_loss = False

    def __init__(self, loop: Loop, patience: int, earlier: Sequence[float], least_change: float = 0.0) -> None:
        super().__init__()
        self.loop = loop
        self.patience = patience
        self._earlier = earlier
        self._least_change = least_change
        self._best = float("inf")
        self._waited = 0

    def on_train_begin(self, logs: Any = None) -> None:
        self._best, self._waited = float("inf"), 0
        for loss in self._earlier:
            self._count(loss)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs and _MONITORED in logs:  # not every epoch ends with a validation
            self._count(logs[_MONITORED])

    @abstractmethod
    def act(self) -> None:
        """What to do after `patience` validations without a lower loss."""

    def _count(self, loss: float) -> None:
        if loss < self._best - self._least_change:
            self._best, self._waited = loss, 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            self._waited = 0
            self.act()


class EarlyStopping(Monitor):
    """Ends the training, as Keras' callback of this name."""

    def act(self) -> None:
        self.loop.model.stop_training = True


class ReduceOnPlateau(Monitor):
    """Multiplies the learning rate of the schedule by 0.1, as Keras' ReduceLROnPlateau."""

    FACTOR = 0.1

    def __init__(self, loop: Loop, patience: int, earlier: Sequence[float]) -> None:
        super().__init__(loop, patience, earlier, _LEAST_CHANGE)

    def on_train_begin(self, logs: Any = None) -> None:
        self.loop.rate_factor = 1.0
        super().on_train_begin(logs)

    def act(self) -> None:
        self.loop.rate_factor *= self.FACTOR
