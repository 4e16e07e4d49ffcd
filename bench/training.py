"""Is training input-bound? Training compared with the loader alone and with the model on synthetic batches.

If loader and model run on different processors, a step takes as long as the slower of the two. If they share the cores
of one CPU, it also takes at least the sum of their CPU times divided by the number of cores.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.measurement import Measurement
from bench.settings import Settings, named_augment, stretched
from bench.timing import WARM_UP_SHARE, Sample, Turn, cpu_seconds, run_turns, turn_of
from pipelines import BatchSpec
from pipelines.system.processes import cpu_count

if TYPE_CHECKING:
    import keras

# `linear`, a dense layer on 14 × 14 averages, is input-bound; `mobilenet_v2`, our smallest ImageNet model, is not.
MODELS = ("linear", "mobilenet_v2")
# Simulated accelerators: steps without CPU time. The value is their time in units of the loader's time for a batch.
STAND_INS = {"accelerator, step half as long": 0.5, "accelerator, step twice as long": 2.0}
_SYNTHETIC = "synthetic"


def measure(settings: Settings) -> Iterator[Measurement]:
    """Measures in turns the loaders alone, the models on synthetic batches, and the models on each loader."""
    loaders = [name for name in settings.loaders if name != _SYNTHETIC]
    for loader in loaders:
        yield from _with_stand_ins(settings, loader)
    for model in MODELS[:1] if settings.short else MODELS:
        yield from _with_model(settings, model, loaders)


def predicted_seconds(loader: Sample, step: Sample, cores: int | None) -> float:
    """Predicts the time per image in training.

    Args:
        loader: the loader alone.
        step: the model on synthetic batches.
        cores: the cores that both share; None if they run on different processors.

    Returns:
        Seconds per image.
    """
    seconds = max(1 / loader.rate, 1 / step.rate)
    if cores is None:
        return seconds
    return max(seconds, (loader.cpu_ms + step.cpu_ms) / 1000 / cores)


def predicted_wait(loader: Sample, step: Sample) -> float:
    """The share of the time that a model on a separate processor waits for data; arguments as `predicted_seconds`."""
    return max(0.0, 1 - loader.rate / step.rate)


def _with_stand_ins(settings: Settings, loader: str) -> Iterator[Measurement]:
    with ExitStack() as stack:
        streams = {name: settings.candidate(name, loader, "full").open() for name in ("alone", *STAND_INS)}
        for stream in streams.values():
            stack.callback(stream.close)
        alone = turn_of(streams["alone"], settings.prefetch + 2)
        batch_seconds = settings.batch_size / alone(settings.seconds).rate
        turns: dict[str, Turn] = {"alone": alone}
        for name, share in STAND_INS.items():
            turns[name] = partial(_stand_in_turn, streams[name], settings.prefetch, share * batch_seconds)
        samples = run_turns(turns, settings.rounds, settings.seconds)
    for name, share in STAND_INS.items():
        step_rate = settings.batch_size / (share * batch_seconds)
        step = Sample(1000, 1000 / step_rate, 0.0)
        stamp = settings.stamp(loader=loader, model=name, augment="full", dtype="float32")
        pairs = list(zip(samples["alone"], samples[name], strict=True))
        seconds = [predicted_seconds(limit, step, None) for limit, _ in pairs]
        yield from _report(f"{loader} → {name}", [turn for _, turn in pairs], seconds, stamp)
        wait = tuple(predicted_wait(limit, step) for limit, _ in pairs)
        yield Measurement("training", f"{loader} → {name}: predicted data wait", "of the time", wait, stamp)


def _stand_in_turn(stream: Iterator[int], prefetch: int, step_seconds: float, seconds: float) -> Sample:
    """Takes batches, and sleeps after each as long as a step takes."""
    for _ in range(prefetch + 4):  # until the queue has its usual length
        next(stream)
        time.sleep(step_seconds)
    images, waited = 0, 0.0
    cpu, start = cpu_seconds(), time.perf_counter()
    now = start
    while now - start < seconds:
        before = time.perf_counter()
        images += next(stream)
        ready = time.perf_counter()
        time.sleep(step_seconds)
        waited += ready - before
        now = time.perf_counter()
    return Sample(images, now - start, cpu_seconds() - cpu, waited)


def _with_model(settings: Settings, model: str, loaders: list[str]) -> Iterator[Measurement]:
    import tensorflow as tf

    with ExitStack() as stack:
        turns: dict[str, Turn] = {}
        for name in loaders:
            stream = settings.candidate(name, name, "full").open()
            stack.callback(stream.close)
            turns[f"{name} alone"] = turn_of(stream, settings.prefetch + 2)
        for name in (_SYNTHETIC, *loaders):
            turns[name] = _loop_turn(settings, model, name, stack)
        for turn in turns.values():
            turn(0.0)  # the first call traces the graph
        samples = run_turns(turns, settings.rounds, settings.seconds)
    cores = None if tf.config.list_physical_devices("GPU") and settings.device == "gpu" else cpu_count()
    stamp = settings.stamp(model=model, augment="full", dtype="float32")
    ceiling = samples[_SYNTHETIC]
    yield Measurement("training", f"{model}: synthetic ceiling", "images/s", tuple(s.rate for s in ceiling), stamp)
    for name in loaders:
        alone = samples[f"{name} alone"]
        seconds = [predicted_seconds(*pair, cores) for pair in zip(alone, ceiling, strict=True)]
        yield from _report(f"{name} → {model}", samples[name], seconds, stamp | {"loader": name})
        rates = tuple(sample.rate for sample in alone)
        yield Measurement("training", f"{name} → {model}: loader alone", "images/s", rates, stamp | {"loader": name})


def _report(name: str, turns: list[Sample], seconds: list[float], stamp: dict[str, Any]) -> Iterator[Measurement]:
    ratio = tuple(turn.rate * predicted for turn, predicted in zip(turns, seconds, strict=True))
    yield Measurement("training", name, "images/s", tuple(turn.rate for turn in turns), stamp)
    yield Measurement("training", f"{name}: predicted", "images/s", tuple(1 / s for s in seconds), stamp)
    yield Measurement("training", f"{name}: measured", "of the predicted", ratio, stamp)
    yield Measurement(
        "training", f"{name}: data wait", "of the time", tuple(turn.waited / turn.seconds for turn in turns), stamp
    )


def _loop_turn(settings: Settings, model_name: str, loader: str, stack: ExitStack) -> Turn:
    """A turn that runs our training loop for some seconds, each time from the start of the first epoch."""
    import keras
    import tensorflow as tf

    from kimagenet.training.feed import open_feed
    from kimagenet.training.loop import Loop

    feed = open_feed(
        tf.distribute.get_strategy(),
        loader,
        stretched(settings.shards, 64_000),
        BatchSpec(settings.batch_size, settings.image_size),
        named_augment("full"),
        workers=settings.workers,
        prefetch=settings.prefetch,
        device=settings.device,
        strict=True,
    )
    stack.enter_context(feed)
    model = _build(model_name, settings.shards.num_classes, settings.image_size)
    loop = Loop(model, keras.optimizers.SGD(1e-3), feed, log_steps=10**9)

    def turn(seconds: float) -> Sample:
        clock = _make_clock(lambda: loop.totals, seconds)
        loop.fit(1000, [clock])  # more epochs than a turn can reach
        return clock.sample()

    return turn


def _make_clock(totals: Callable[[], Any], seconds: float) -> Any:
    """A callback that records the totals after the warm-up and at the end of the turn, and then stops the loop."""
    import keras

    class Clock(keras.callbacks.Callback):
        needs_every_loss = False

        def on_train_begin(self, logs: Any = None) -> None:
            self.opened = time.perf_counter()
            self.marks: list[tuple[float, float, Any]] = []  # wall time, CPU time, totals

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            now = time.perf_counter()
            if not self.marks and now - self.opened < WARM_UP_SHARE * seconds:
                return
            if not self.marks or now - self.marks[0][0] >= seconds:
                self.marks.append((now, cpu_seconds(), totals()))
            self.model.stop_training = len(self.marks) > 1 and self.marks[-1][2].images > self.marks[0][2].images

        def sample(self) -> Sample:
            (_, cpu_start, first), (_, cpu_end, last) = self.marks[0], self.marks[-1]
            done = last - first
            return Sample(done.images, done.seconds, cpu_end - cpu_start, done.waited)

    return Clock()


def _build(name: str, num_classes: int, image_size: int) -> "keras.Model":
    from kimagenet import models

    if name != "linear":
        return models.build(name, num_classes=num_classes, image_size=image_size)
    from keras import Input, Sequential, layers

    pool = max(1, image_size // 14)
    return Sequential(
        [
            Input((image_size, image_size, 3)),
            layers.AveragePooling2D(pool),
            layers.Flatten(),
            layers.Dense(num_classes, activation="softmax"),
        ]
    )
