"""How the project that this one rewrites builds a shard: in threads, decoding through TensorFlow for an image's shape.

Written from its description: each thread reads a file, lets TensorFlow decode it, fills a `tf.train.Example` and hands
it to a `tf.io.TFRecordWriter`. No checks, no indexes; a session's place is taken by eager calls.
"""

from pipelines.building.shard_writer import ShardResult, ShardTask
from pipelines.shards import records


def write_shard(task: ShardTask) -> ShardResult:
    """Writes one shard; of the result only the sizes are filled in."""
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
