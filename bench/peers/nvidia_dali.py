"""A DALI graph in the style of NVIDIA's ResNet-50 examples: random-crop decode, resize, crop_mirror_normalize.

"full" adds rotate and color_twist. It runs on the CPU through DALI's TensorFlow plugin.
"""

from collections.abc import Iterator
from typing import Any

from bench.peers import Task
from pipelines.shards.records import ENCODED, LABEL

TITLE = "DALI as NVIDIA's examples"
AUGMENTS = ("full", "standard")


def unavailable() -> str | None:
    """Why DALI cannot be used on this machine, or None."""
    from pipelines.loaders import dali

    problem = dali.unavailable("cpu")
    return None if problem is None else str(problem)


def batches(task: Task) -> Iterator[Any]:
    """Batches in the order of DALI's shuffling reader."""
    import tensorflow as tf
    from nvidia.dali.plugin import tf as dali_tf

    pipeline = _graph(task)
    pipeline.build()  # raises an exception; an error in DALIDataset would abort the process
    size, count = task.image_size, task.batch_size
    with tf.device("/cpu:0"):
        dataset = dali_tf.DALIDataset(
            pipeline=_graph(task),
            batch_size=count,
            num_threads=task.workers,
            device_id=None,
            output_shapes=((count, size, size, 3), (count,)),
            output_dtypes=(tf.float32, tf.int32),
        )
    return iter(dataset)


def _graph(task: Task) -> Any:
    from nvidia.dali import fn, pipeline_def, tfrecord, types

    full, size = task.augment == "full", task.image_size

    @pipeline_def(
        batch_size=task.batch_size, num_threads=task.workers, device_id=None, seed=1, enable_conditionals=True
    )
    def graph() -> Any:
        record = fn.readers.tfrecord(
            path=task.files,
            index_path=[f"{path}.idx" for path in task.files],
            random_shuffle=True,
            initial_fill=1024,
            features={
                ENCODED: tfrecord.FixedLenFeature((), tfrecord.string, ""),
                LABEL: tfrecord.FixedLenFeature([1], tfrecord.int64, -1),
            },
        )
        image = fn.decoders.image_random_crop(
            record[ENCODED],
            output_type=types.RGB,
            random_aspect_ratio=[0.75, 4 / 3],
            random_area=[0.6 if full else 0.08, 1.0],
            num_attempts=100,
        )
        image = fn.resize(image, size=[size, size], interp_type=types.INTERP_TRIANGULAR)
        if full:
            if fn.random.coin_flip(probability=0.75, dtype=types.BOOL):
                image = fn.rotate(image, angle=fn.random.uniform(range=(-15, 15)), keep_size=True, fill_value=0)
            image = fn.color_twist(
                image,
                brightness=fn.random.uniform(range=(1 - 32 / 255, 1 + 32 / 255)),
                saturation=fn.random.uniform(range=(0.5, 1.5)),
            )
        image = fn.crop_mirror_normalize(
            image,
            dtype=types.FLOAT,
            output_layout="HWC",
            mean=[127.5] * 3,
            std=[127.5] * 3,
            mirror=fn.random.coin_flip(probability=0.5),
        )
        return image, fn.cast(record[LABEL][0], dtype=types.INT32) - task.shards.label_base

    return graph()
