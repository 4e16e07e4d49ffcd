"""What do TrivialAugment and RandAugment cost, in the loader and on the training device?"""

import itertools
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import numpy as np

from bench.measurement import Measurement
from bench.settings import Settings
from bench.timing import Candidate, rates, ratio_rounds, ratios, run_interleaved
from pipelines import AugmentSpec
from pipelines.uniform import RecordUniform

_PLAIN, _STEP = "standard", "a training step"
POLICIES = ("trivial", "rand:2,9")
MODEL = "resnet50_v1_5"


def measure(settings: Settings) -> Iterator[Measurement]:
    """Loaders by themselves against the standard augmentation, then the device's part against a step of ResNet-50."""
    for loader in (name for name in settings.loaders if name != "synthetic"):
        candidates = [settings.candidate(name, loader, name) for name in (_PLAIN, *POLICIES)]
        samples = run_interleaved(candidates, settings.rounds, settings.seconds)
        stamp = settings.stamp(loader=loader, dtype="float32")
        yield from rates("policy", samples, stamp)
        yield from ratios("policy", samples, _PLAIN, stamp)
    if not settings.short:
        yield from _on_device(settings)


def _on_device(settings: Settings) -> Iterator[Measurement]:
    step = partial(_stream, settings, _training_step)
    candidates = [Candidate(_STEP, step, buffered=0)]
    candidates += [Candidate(name, partial(_stream, settings, partial(_tones, name)), buffered=0) for name in POLICIES]
    samples = run_interleaved(candidates, settings.rounds, settings.seconds)
    stamp = settings.stamp(model=MODEL, dtype="float32")
    for name in POLICIES:
        share = ratio_rounds(samples[_STEP], samples[name])
        yield Measurement("policy", f"device: {name}", f"of a step of {MODEL}", share, stamp)


def _stream(settings: Settings, make: Callable[[Settings], Callable[[], Any]]) -> Generator[int, None, None]:
    """Does something with a batch of noise again and again, and waits for its result."""
    act = make(settings)
    while True:
        act()
        yield settings.batch_size


def _images(settings: Settings) -> Any:
    import tensorflow as tf

    shape = (settings.batch_size, settings.image_size, settings.image_size, 3)
    return tf.random.stateless_uniform(shape, [0, 0], -1, 1)


def _training_step(settings: Settings) -> Callable[[], Any]:
    import keras
    import tensorflow as tf

    from kimagenet import models
    from kimagenet.training.steps import make_training_step

    model = models.build(MODEL, image_size=settings.image_size)
    optimizer = keras.optimizers.SGD(1e-3)
    optimizer.build(model.trainable_variables)
    step = make_training_step(model, optimizer, tf.distribute.get_strategy(), settings.batch_size)
    images, labels = _images(settings), tf.zeros(settings.batch_size, tf.int32)
    return lambda: step(images, labels).numpy()


def _tones(name: str, settings: Settings) -> Callable[[], Any]:
    import tensorflow as tf

    from kimagenet.training.tones import apply_tones

    uniform = RecordUniform(0, 0, np.arange(16 * settings.batch_size))
    drawn = AugmentSpec.named(name).tones(uniform, settings.image_size)
    batches = itertools.cycle([tf.constant(part) for part in np.split(drawn, 16)])
    images, apply = _images(settings), tf.function(apply_tones)
    return lambda: apply(images, next(batches))[0, 0, 0].numpy()  # waits for the whole batch
