"""A tf.data graph in the style of TensorFlow's model garden: decode only the crop, resize, flip.

"full" rotates the resized image, as a user of tf.data would, then changes brightness and saturation.
"""

from collections.abc import Iterator
from typing import Any

from bench.peers import PREFETCH, Task, parse_example

TITLE = "tf.data as tf-models writes it"
AUGMENTS = ("full", "standard")


def unavailable() -> str | None:
    """Always None: it needs only TensorFlow."""
    return None


def batches(task: Task) -> Iterator[Any]:
    """Batches; tf.data chooses the parallel calls and has `workers` threads."""
    import tensorflow as tf

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, label = parse_example(serialized, task.shards.label_base)
        image = _decode_crop(encoded, (0.6 if task.augment == "full" else 0.08, 1.0))
        image = tf.image.resize(image, [task.image_size] * 2, method="bilinear")
        image = tf.image.random_flip_left_right(tf.ensure_shape(image, [task.image_size, task.image_size, 3]))
        if task.augment == "full":
            image = _rotate_and_colour(image)
        return (image - 127.5) / 127.5, label

    dataset = tf.data.Dataset.from_tensor_slices(task.files).shuffle(len(task.files)).repeat()
    dataset = dataset.interleave(tf.data.TFRecordDataset, cycle_length=10, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.shuffle(1024).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(task.batch_size, drop_remainder=True).prefetch(PREFETCH)
    options = tf.data.Options()
    options.deterministic = False
    options.threading.private_threadpool_size = task.workers
    return iter(dataset.with_options(options))


def _decode_crop(encoded: Any, area_range: tuple[float, float]) -> Any:
    import tensorflow as tf

    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(encoded),
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        min_object_covered=0.1,
        aspect_ratio_range=(0.75, 1.33),
        area_range=area_range,
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.image.decode_and_crop_jpeg(encoded, tf.concat([begin[:2], extent[:2]], axis=0), channels=3)


def _rotate_and_colour(image: Any) -> Any:
    import tensorflow as tf

    from bench.peers.keras_imagenet import rotate

    angle = tf.random.uniform([], -15.0, 15.0) * 0.017453292
    image = tf.cond(tf.random.uniform([]) < 0.75, lambda: rotate(image, angle), lambda: image)
    image = tf.image.random_brightness(image, 32.0)
    image = tf.image.random_saturation(image, 0.5, 1.5)
    return tf.clip_by_value(image, 0.0, 255.0)
