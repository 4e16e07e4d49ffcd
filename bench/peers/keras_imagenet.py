"""The tf.data graph of keras_imagenet, the project that kimagenet rewrites. It is written from a description.

decode → [0, 1] → rotate the whole image → crop → resize → flip → brightness, saturation → [-1, 1]. Each image has a
different angle, as the original intended. TensorFlow Addons, which the original used to rotate, is discontinued; the
graph calls the same TensorFlow operation.
"""

from collections.abc import Iterator
from typing import Any

from bench.peers import PREFETCH, Task, parse_example

TITLE = "keras_imagenet, the original"
AUGMENTS = ("full",)


def unavailable() -> str | None:
    """Always None: it needs only TensorFlow."""
    return None


def batches(task: Task) -> Iterator[Any]:
    """Batches from interleaved files; records are shuffled in a buffer and parsed in parallel."""
    import tensorflow as tf

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, label = parse_example(serialized, task.shards.label_base)
        image = tf.image.convert_image_dtype(tf.io.decode_jpeg(encoded, channels=3), tf.float32)
        return _augment(image, task.image_size), label

    files = tf.data.Dataset.from_tensor_slices(task.files).shuffle(len(task.files)).repeat()
    dataset = files.interleave(tf.data.TFRecordDataset, cycle_length=task.workers, num_parallel_calls=task.workers)
    dataset = dataset.shuffle(1024).map(parse, num_parallel_calls=task.workers)
    return iter(dataset.batch(task.batch_size, drop_remainder=True).prefetch(PREFETCH))


def _augment(image: Any, size: int) -> Any:
    import tensorflow as tf

    turned = tf.cast(tf.random.uniform([]) < 0.75, tf.float32)
    # The original rotates every image, also by 0°.
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


def rotate(image: Any, angle: Any) -> Any:
    """Rotates a float32 [H, W, 3] image about its centre by `angle` radians, bilinear; the size stays the same."""
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
