"""Statistics of BatchNormalization on two devices: of the whole batch if synchronized, else the mean of both."""

import keras
import numpy as np
import tensorflow as tf

from kimagenet.training.strategy import make_statistics_mean, synchronize_batch_norm

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"])
parts = tf.constant([[[1.0], [3.0]], [[11.0], [25.0]]])


def train_once(model: keras.Model) -> None:
    images = strategy.experimental_distribute_values_from_function(lambda c: parts[c.replica_id_in_sync_group])
    strategy.run(tf.function(lambda x: model(x, training=True)), args=(images,))


for synchronized, mean, variance in ((True, 10.0, 89.0), (False, 10.0, 25.0)):
    with strategy.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization(momentum=0.0)])
    if synchronized:
        synchronize_batch_norm(model)
    train_once(model)
    average = make_statistics_mean(model, strategy)
    average()
    layer = model.layers[0]
    for variable, expected in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
        for value in strategy.experimental_local_results(variable.value):
            np.testing.assert_allclose(value.numpy(), [expected], rtol=1e-6)
print("equal")
