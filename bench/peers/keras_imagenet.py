"""The project that this one rewrites: its tf.data graph, with an angle for each image, which it meant to have.

decode → [0, 1] → rotate the whole image → crop → resize → flip → brightness, saturation → [-1, 1]. Written from its
description. TensorFlow Addons, which rotated, is no more: the same operation is called here directly.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipelines.shards.records import ENCODED, LABEL

if TYPE_CHECKING:
    from bench.peers import Task

TITLE = "keras_imagenet, the original"
AUGMENTS = ("full",)


def unavailable() -> str | None:
    """It needs TensorFlow only."""
    return None


def batches(task: "Task") -> Iterator[Any]:
    """Files interleaved, records shuffled in a buffer, parsed in parallel."""
    import tensorflow as tf

    from bench.peers import PREFETCH

    def parse(serialized):
        features = {ENCODED: tf.io.FixedLenFeature([], tf.string), LABEL: tf.io.FixedLenFeature([], tf.int64)}
        parsed = tf.io.parse_single_example(serialized, features)
        image = tf.image.convert_image_dtype(tf.io.decode_jpeg(parsed[ENCODED], channels=3), tf.float32)
        return _augment(image, task.image_size), tf.cast(parsed[LABEL], tf.int32) - task.shards.label_base

    files = tf.data.Dataset.from_tensor_slices(task.files).shuffle(len(task.files)).repeat()
    dataset = files.interleave(tf.data.TFRecordDataset, cycle_length=task.workers, num_parallel_calls=task.workers)
    dataset = dataset.shuffle(1024).map(parse, num_parallel_calls=task.workers)
    return iter(dataset.batch(task.batch_size, drop_remainder=True).prefetch(PREFETCH))


def _augment(image, size: int):
    import tensorflow as tf

    turned = tf.cast(tf.random.uniform([]) < 0.75, tf.float32)
    # The rotation stands in its graph whatever the angle is, 0 included.
    image = rotate(image, turned * tf.random.uniform([], -15.0, 15.0) * 0.017453292)
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.shape(image),
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        min_object_covered=0.6,
        aspect_ratio_range=(0.75, 1.33),
        area_range=(0.6, 1.0),
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    image = tf.image.resize(tf.slice(image, begin, extent), [size, size])
    image = tf.image.random_flip_left_right(tf.ensure_shape(image, [size, size, 3]))
    image = tf.image.random_brightness(image, 32 / 255)
    image = tf.image.random_saturation(image, 0.5, 1.5)
    return tf.clip_by_value(image, 0.0, 1.0) * 2 - 1


def rotate(image, angle):
    """Bilinear, about the centre, on the image's own canvas."""
    import tensorflow as tf

    height, width = (tf.cast(tf.shape(image)[axis], tf.float32) - 1 for axis in (0, 1))
    cos, sin = tf.cos(angle), tf.sin(angle)
    from_x = (width - (cos * width - sin * height)) / 2
    from_y = (height - (sin * width + cos * height)) / 2
    transform = tf.stack([cos, -sin, from_x, sin, cos, from_y, 0.0, 0.0])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=transform[None],
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]
