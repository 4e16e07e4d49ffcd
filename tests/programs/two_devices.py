"""Trains on one device and on two: argument 1 is a data set. The results are equal."""

import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kimagenet.optim import IterSize
from kimagenet.training.feed import open_feed
from kimagenet.training.loop import Loop
from pipelines import AugmentSpec, BatchSpec, ShardSet
from pipelines.policy import Policy
from tests.test_loop import IMAGE_SIZE, make_model, weights_of

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
directory = Path(sys.argv[1])
training = replace(AugmentSpec.train(), policy=Policy.trivial())
losses, weights, results = [], [], []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"])):
    feeds = [
        open_feed(strategy, "tfdata", ShardSet.open(directory, split), BatchSpec(16, IMAGE_SIZE), augment, workers=2)
        for split, augment in (("train", training), ("validation", AugmentSpec.evaluation()))
    ]
    assert len(feeds[0].loaders) == strategy.num_replicas_in_sync
    with strategy.scope():
        model = make_model()
        optimizer = IterSize(keras.optimizers.Adam(0.01), 2)
    loop = Loop(model, optimizer, *feeds, weight_decay=1e-3, label_smoothing=0.1)
    history = loop.fit(2).history
    losses.append(history["loss"] + history["val_loss"])
    results.append(history["top1"] + history["val_top1"] + history["val_top5"])
    weights.append(weights_of(model))
np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
np.testing.assert_allclose(results[1], results[0], rtol=1e-6)
# Adam divides by small numbers: sums in another order show in the fifth digit.
np.testing.assert_allclose(weights[1], weights[0], rtol=0, atol=2e-5)
print("equal")
