"""The shard builder of keras_imagenet, the project that kimagenet rewrites. It is written from a description.

Each thread reads a file, decodes it with TensorFlow to get the image's size, fills a `tf.train.Example` and passes it
to a `tf.io.TFRecordWriter`. It checks nothing and writes no index. Eager calls replace the original's session.
"""

from pipelines.building.shard_writer import ShardResult, ShardTask
from pipelines.shards import records


def write_shard(task: ShardTask) -> ShardResult:
    """Writes one shard.

    Args:
        task: the shard's path and images.

    Returns:
        A result with the name of the file and the sizes of the images only.
    """
    import tensorflow as tf

    sizes = []
    with tf.io.TFRecordWriter(str(task.path)) as writer:
        for entry in task.entries:
            encoded = entry.read()
            image = tf.io.decode_jpeg(encoded, channels=3)
            sizes.append((int(image.shape[0]), int(image.shape[1])))
            writer.write(_example(encoded, *sizes[-1], entry.name))
    return ShardResult(task.path.name, "", 0, "", sizes)


def _example(encoded: bytes, height: int, width: int, name: str) -> bytes:
    import tensorflow as tf

    def text(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def number(value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    features = {
        records.HEIGHT: number(height),
        records.WIDTH: number(width),
        records.COLORSPACE: text(b"RGB"),
        records.CHANNELS: number(3),
        records.LABEL: number(1),
        records.SYNSET: text(b"any"),
        records.TEXT: text(b"any"),
        records.FORMAT: text(b"JPEG"),
        records.FILENAME: text(name.encode()),
        records.ENCODED: text(encoded),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
