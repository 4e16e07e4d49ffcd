"""Keeps the models of the last and of the best epoch."""

from typing import Any

import keras

from kimagenet.loop import Loop
from kimagenet.run import RunDirectory, save_model


class KeepLastAndBest(keras.callbacks.Callback):
    """After each epoch last.keras; best.keras if validation top-1 is higher than in every epoch before."""

    def __init__(self, loop: Loop, run: RunDirectory) -> None:
        super().__init__()
        self._loop = loop
        self._run = run
        self._best = -1.0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with self._loop.evaluation_weights():
            save_model(self._loop.model, self._run.last)
            if (top1 := logs.get("val_top1", -1.0)) > self._best:
                save_model(self._loop.model, self._run.best)
                self._best = top1
