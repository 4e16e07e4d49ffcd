"""The training loop: batches to optimizer steps, epoch by epoch, on one device or many.

It owns the position (epoch, step), the learning rate and the clock. Everything else that happens between steps, such as
logs and checkpoints, is a `keras.callbacks.Callback`. It is used instead of `model.fit` because it can start at any
step of any epoch, works with iter_size and several workers under tf.distribute, and measures its wait for data.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from time import perf_counter
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kimagenet.optim import evaluation_weights
from kimagenet.schedule import Schedule
from kimagenet.training.feed import Feed, GivenUp
from kimagenet.training.mixing import MixSpec
from kimagenet.training.results import Evaluation, Position, Totals
from kimagenet.training.steps import Step, make_evaluation_step, make_training_step
from kimagenet.training.strategy import make_statistics_mean
from kimagenet.training.waits import WaitSampler

WARM_UP_STEPS = 3  # the first steps of a run are not timed: they trace, allocate and fill caches


class Stopped(Exception):
    """`Loop.request_stop` took effect. The loop is between two steps, at its `position`."""


class NonFiniteLoss(Exception):
    """The loss of a step is NaN or infinite. The weights already contain its update.

    Attributes:
        epoch: the epoch, from 0.
        step: the step in it, from 0.
    """

    def __init__(self, epoch: int, step: int, loss: float) -> None:
        super().__init__(f"epoch {epoch}, step {step}: the loss is {loss}")
        self.epoch = epoch
        self.step = step


def evaluate(
    step: Step, feed: Feed, before_step: Callable[[], None] = lambda: None, run_epoch: int | None = None
) -> Evaluation:
    """Evaluates a model on a whole split. Sums are float64, counts are exact.

    Args:
        step: from `make_evaluation_step`.
        feed: evaluation batches.
        before_step: called before each step; may raise to end the evaluation.
        run_epoch: the epoch of the run that is evaluated, for messages and corrupt.jsonl.
    """
    sums = np.zeros(4)
    for batch in feed.epoch(0, run_epoch=run_epoch):
        before_step()
        sums += step(*batch).numpy()
    loss, top1, top5, records = sums
    return Evaluation(round(records), round(top1), round(top5), loss / records)


class Loop:
    """Trains a model.

    Args:
        model: built in the strategy's scope, returns probabilities. The loop compiles it with the optimizer, so that
            Keras' callbacks find `model.optimizer`.
        optimizer: any Keras optimizer, made in the scope; mixed_float16 adds loss scaling around it.
        training: batches of (images, labels).
        validation: batches of (images, labels, weights), or None.
        schedule: sets the learning rate before each step; None leaves it to the optimizer and the callbacks.
        weight_decay: see `make_training_step`.
        label_smoothing: see `make_training_step`.
        class_weights: see `make_training_step`.
        mixing: see `make_training_step`.
        seed: see `make_training_step`.
        xla: see `make_training_step`.
        ema: evaluate with the optimizer's moving average of the weights, and also with the weights as they are.
        log_steps: steps from one log step to the next.
        validate_every: epochs from one validation to the next; the last epoch always has one.

    Attributes:
        model: the model that is trained.
        training: the batches it is trained on.
        validation: the batches it is validated on, or None.
        steps_per_epoch: steps of a whole epoch.
        log_steps: as given.
        totals: sums over the steps so far; after a resume, those since the beginning of its epoch.
        images: the images of the last step as the loader gave them, or None.
        is_best: whether the last validation has the highest top-1 so far.
        rate_factor: what the learning rate of the schedule is multiplied by.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        training: Feed,
        validation: Feed | None = None,
        *,
        schedule: Schedule | None = None,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.0,
        class_weights: np.ndarray | None = None,
        mixing: MixSpec | None = None,
        seed: int = 0,
        xla: bool = False,
        ema: bool = False,
        log_steps: int = 50,
        validate_every: int = 1,
    ) -> None:
        self.model = model
        self.training = training
        self.validation = validation
        self.steps_per_epoch = training.steps_per_epoch
        self.log_steps = log_steps
        self.totals = Totals()
        self.images: Any = None
        self.is_best = False
        self.rate_factor = 1.0
        self._validate_every = validate_every
        self._epoch = self._step = 0
        self._epoch_began = Totals()
        self._best_top1 = -1.0
        self._data_epoch = 0
        self._schedule = schedule
        self._ema = ema
        self._make_training_step = partial(
            make_training_step,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            mixing=mixing,
            seed=seed,
            xla=xla,
        )
        self.use_optimizer(optimizer)
        self._evaluation_step = make_evaluation_step(model, training.strategy)
        self._in_flight: tuple[int, int, tf.Tensor] | None = None
        self._stop_is_requested = self._all_stop = False
        self._warm_up = WARM_UP_STEPS
        self._waits = WaitSampler(training.decoders)
        for feed in (training, validation):
            if feed is not None:
                feed.gives_up = lambda: self._has_to_stop

    def use_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Trains with a new optimizer, made in the scope, those weights that are trainable now."""
        strategy = self.training.strategy
        with strategy.scope():
            self.model.compile(optimizer=optimizer)
            self.model.optimizer.build(self.model.trainable_variables)
        batch = self.training.global_batch
        self._training_step = self._make_training_step(self.model, self.model.optimizer, strategy, batch)
        self._average_statistics = make_statistics_mean(self.model, strategy)

    # ---- Where the run is

    @property
    def global_step(self) -> int:
        """Steps done since the beginning of the run."""
        return self._epoch * self.steps_per_epoch + self._step

    @property
    def epoch_totals(self) -> Totals:
        """Sums over the steps of this epoch, those before a resume included."""
        return self.totals - self._epoch_began

    @property
    def position(self) -> Position:
        """The position between two steps. Waits for the loss of the last step."""
        self._count_step_in_flight()
        totals = self.epoch_totals if self._step else Totals()
        return Position(self._epoch, self._step, totals, self._best_top1, self._data_epoch)

    @property
    def num_skipped(self) -> int:
        """How many corrupt records the run skips, in both splits."""
        return len(self.training.corrupt)

    def is_log_step(self, step: int) -> bool:
        """Whether the totals are complete after this step of an epoch: every `log_steps`, and after the last one."""
        return (step + 1) % self.log_steps == 0 or step + 1 == self.steps_per_epoch

    # ---- What a checkpoint contains

    @property
    def variables(self) -> list[keras.Variable]:
        """All state of a run: weights, statistics, seeds of layers; state of the optimizer and its wrappers."""
        return [*self.model.variables, *self.model.optimizer.variables]

    def values(self) -> list[np.ndarray]:
        """Copies of the `variables`, equal on all workers. A collective operation."""
        self._average_statistics()
        return [np.array(variable.numpy()) for variable in self.variables]

    def skip_again(self, lines: Sequence[dict[str, Any]]) -> None:
        """Skips the corrupt records that a checkpoint lists, in the form of `SkippedRecords.lines`."""
        self.training.corrupt.lines = list(lines)
        for feed in (self.training, self.validation):
            if feed is not None:
                feed.recovery.skip_listed()

    # ---- Training

    def request_stop(self) -> None:
        """Lets `fit` raise `Stopped` after the current step; several workers stop at the same step.

        A single worker also stops between two steps of a validation.
        """
        self._stop_is_requested = True

    def fit(
        self,
        epochs: int,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        start: Position | None = None,
    ) -> keras.callbacks.History:
        """Trains to the end of epoch `epochs` − 1. At the end the model has the weights that are evaluated.

        Callbacks get logs `loss`, `top1` (means of the epoch so far) and `learning_rate`; at the end of an epoch also
        `val_loss`, `val_top1`, `val_top5`, and with `ema` `val_raw_…` for the weights that are not averaged. They see
        the weights that are trained; `evaluation_weights` gives those that are evaluated. A callback with
        `on_train_batch_end` makes the loop wait for the loss of every step, unless it has `needs_every_loss = False`:
        then logs may lack the loss of the last step, except where `is_log_step`, and the device is never idle.

        Args:
            epochs: epochs of the whole run.
            callbacks: called as Keras does.
            start: where to start; None: the beginning.

        Returns:
            Keras' history of the epochs.

        Raises:
            NonFiniteLoss: a loss is NaN or infinite.
            Stopped: `request_stop` was called.
        """
        start = start or Position()
        self._epoch, self._step, self._best_top1 = start.epoch, start.step, start.best_top1
        self._data_epoch = start.data_epoch
        self._epoch_began = self.totals
        self.totals += start.totals
        self._all_stop = False
        listeners = keras.callbacks.CallbackList(
            list(callbacks), add_history=True, model=self.model, epochs=epochs, steps=self.steps_per_epoch, verbose=0
        )
        every_loss = any(getattr(callback, "needs_every_loss", _hears_steps(callback)) for callback in callbacks)
        self.model.stop_training = False
        logs: dict[str, float] = {}
        listeners.on_train_begin()
        with self._waits.sampling():
            for epoch in range(start.epoch, epochs):
                if self.model.stop_training:  # before a resume
                    break
                listeners.on_epoch_begin(epoch)
                logs = self._train_epoch(epoch, self._step, listeners, every_loss)
                if self.validation is not None and self._is_validated(epoch, epochs):
                    logs |= self._validate(self.validation, epoch, listeners)
                self.is_best = logs.get("val_top1", -1.0) > self._best_top1
                self._best_top1 = max(self._best_top1, logs.get("val_top1", -1.0))
                if self._step == self.steps_per_epoch:
                    self._epoch, self._step = epoch + 1, 0
                listeners.on_epoch_end(epoch, logs)
                self._epoch_began = self.totals
                if self.model.stop_training:
                    break
                if self._has_to_stop and epoch + 1 < epochs:
                    raise Stopped
        self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        listeners.on_train_end(logs)
        return self.model.history

    def evaluation_weights(self) -> AbstractContextManager[None]:
        """Within it, the model has the weights that are evaluated: slow ones, averaged ones, or as they are."""
        return evaluation_weights(self.model.optimizer, self.model.trainable_variables, ema=self._ema)

    def _train_epoch(
        self, epoch: int, first: int, listeners: keras.callbacks.CallbackList, every_loss: bool
    ) -> dict[str, float]:
        batches = self.training.epoch(epoch, first)
        self._waits.take()  # those of the validation do not count
        logs = {"learning_rate": self._set_learning_rate(epoch, min(first, self.steps_per_epoch - 1))}
        mark = perf_counter()
        for step in range(first, self.steps_per_epoch):
            asked = perf_counter()
            try:
                with self._waits.waiting():
                    batch = next(batches, None)
            except GivenUp:  # between two steps, so a checkpoint can be written
                self._count_step_in_flight()
                raise Stopped from None
            if batch is None:  # without its skipped records an epoch ends sooner
                self._step = self.steps_per_epoch
                break
            images, labels, *tones = batch
            waited = perf_counter() - asked
            listeners.on_train_batch_begin(step)
            learning_rate = self._set_learning_rate(epoch, step)
            self.images = images
            stop = tf.constant(self._stop_is_requested, tf.float32)
            result = self._training_step(images, labels, tf.constant(self.global_step, tf.int64), stop, *tones)
            # At most one step ahead: the device is never idle, and the loader's queue fills up if data is fast enough.
            self._count_step_in_flight()
            self._in_flight = epoch, step, result
            self._step = step + 1
            if every_loss or self.is_log_step(step):
                self._count_step_in_flight()
            now = perf_counter()
            self._count_time(now - mark, waited)
            mark = now
            logs = self.epoch_totals.means() | {"learning_rate": learning_rate}
            listeners.on_train_batch_end(step, logs)
            if self.model.stop_training or self._has_to_stop:
                break
        self._count_step_in_flight()
        if self._has_to_stop:
            raise Stopped
        return logs | self.epoch_totals.means()

    def _count_step_in_flight(self) -> None:
        if self._in_flight is not None:
            epoch, step, result = self._in_flight
            self._in_flight = None
            loss, top1, stops = result.numpy().tolist()
            if not math.isfinite(loss):
                raise NonFiniteLoss(epoch, step, loss)
            self.totals += Totals(steps=1, loss=loss, top1=top1)
            self._all_stop = stops > 0

    def _count_time(self, seconds: float, waited: float) -> None:
        found = self._waits.take()
        if self._warm_up:
            self._warm_up -= 1
        else:
            self.totals += Totals(
                images=self.training.global_batch,
                seconds=seconds,
                waited=waited,
                samples=found.taken,
                in_storage=found.in_storage,
            )

    def _set_learning_rate(self, epoch: int, step: int) -> float:
        optimizer = self.model.optimizer
        if self._schedule is None:
            return float(tf.convert_to_tensor(optimizer.learning_rate).numpy())
        position = epoch + step / self.steps_per_epoch
        if position < self._schedule.warmup_epochs:  # at the end of the step, so that the first rate is not zero
            position += 1 / self.steps_per_epoch
        rate = self._schedule.at(position) * self.rate_factor
        optimizer.learning_rate = rate
        return rate

    # ---- Validation

    def _is_validated(self, epoch: int, epochs: int) -> bool:
        return (epoch + 1) % self._validate_every == 0 or epoch + 1 == epochs

    def _validate(self, validation: Feed, epoch: int, listeners: keras.callbacks.CallbackList) -> dict[str, float]:
        listeners.on_test_begin()
        self._average_statistics()
        with self.evaluation_weights():
            logs = self._evaluate(validation, epoch)
        if self._ema:
            logs |= {f"raw_{name}": value for name, value in self._evaluate(validation, epoch).items()}
        listeners.on_test_end(logs)
        return {f"val_{name}": value for name, value in logs.items()}

    def _evaluate(self, validation: Feed, epoch: int) -> dict[str, float]:
        try:
            result = evaluate(self._evaluation_step, validation, self._stop_alone, epoch)
        except GivenUp:
            raise Stopped from None
        return {"loss": result.loss, "top1": result.top1, "top5": result.top5}

    # ---- Stopping

    @property
    def _has_to_stop(self) -> bool:
        # Several workers stop at the same step: they learn of a request only in a training step.
        return self._all_stop or (self._stop_is_requested and not self.training.has_peers)

    def _stop_alone(self) -> None:
        if self._has_to_stop:
            raise Stopped


def _hears_steps(callback: keras.callbacks.Callback) -> bool:
    return type(callback).on_train_batch_end is not keras.callbacks.Callback.on_train_batch_end
