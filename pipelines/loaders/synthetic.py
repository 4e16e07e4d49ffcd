"""One constant batch, repeated: the speed that training reaches if data costs nothing."""

import numpy as np
import tensorflow as tf

from pipelines.loader import Loader, Unavailable
from pipelines.stream import Segment


def unavailable(device: str) -> Unavailable | None:
    """None: it needs nothing but TensorFlow."""
    return None


class SyntheticLoader(Loader):
    """Random pixels and labels, drawn once from the seed. An epoch has as many steps as the data set gives."""

    name = "synthetic"
    _reads_shards = False

    def make_dataset(self, segment: Segment) -> tf.data.Dataset:
        rng = np.random.default_rng(self.seed)
        size, count = self.batch.image_size, self.batch.batch_size
        images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        labels = rng.integers(0, self.shards.num_classes, count, dtype=np.int32)
        if self.batch.dtype != "uint8":
            images = (images * np.float32(2 / 255) - 1).astype(self.batch.dtype)
        batch = tf.data.Dataset.from_tensors((images, labels)).cache().repeat(segment.steps)
        if not self.augment.is_evaluation:
            return batch
        steps = segment.plan.steps_per_epoch
        weights = tf.data.Dataset.from_tensor_slices(segment.plan.weights.reshape(steps, count))
        weights = weights.repeat().skip(segment.first % steps)
        return tf.data.Dataset.zip(batch, weights).map(lambda images_labels, weight: (*images_labels, weight))


LOADER = SyntheticLoader
