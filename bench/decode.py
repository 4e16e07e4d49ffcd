"""What is the limit? The rate of JPEG decoding alone, of the same records and with as many threads as the loaders."""

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.measurement import Measurement
from bench.reading import read_bytes, read_example
from bench.settings import Settings
from bench.timing import Candidate, rates, ratios, run_interleaved
from pipelines.errors import UserError
from pipelines.shards.records import ENCODED, HEADER_BYTES, decode_example
from pipelines.shards.shard_set import ShardSet

LIMIT = "decode limit"
_SAMPLE = 4096  # records that are decoded; few enough to list their places in advance
_CHUNK = 8  # images in a task: enough to hide the overhead of the pool, few enough to count them evenly


class JpegPlace(NamedTuple):
    """The place of one JPEG: the shard, the first byte and the number of bytes."""

    path: Path
    offset: int
    length: int


def measure(settings: Settings) -> Iterator[Measurement]:
    """Measures the limit and the decoders that the loaders use. Each decodes whole images and does nothing else."""
    candidates = [limit(settings), Candidate("tf.io.decode_jpeg", partial(_tensorflow, settings))]
    if "dali" in settings.loaders:
        candidates.append(Candidate("dali decoders.image", partial(_dali, settings, "cpu")))
        if settings.device == "gpu":
            candidates.append(Candidate("dali decoders.image, GPU", partial(_dali, settings, "mixed")))
    samples = run_interleaved(candidates, settings.rounds, settings.seconds)
    yield from rates("decode", samples, settings.stamp())
    yield from ratios("decode", samples, LIMIT, settings.stamp())


def limit(settings: Settings, name: str = LIMIT) -> Candidate:
    """libjpeg-turbo decodes whole images to RGB in `workers` threads: the limit for loaders that decode whole images.

    Args:
        settings: shards and threads.
        name: the name of the candidate.

    Raises:
        UserError: simplejpeg is not installed.
    """
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        raise UserError("the decode limit needs the package simplejpeg", remedy="`pip install simplejpeg`") from None
    return Candidate(name, partial(_threads, settings.shards, settings.workers), 2 * settings.workers)


def find_jpegs(shards: ShardSet, count: int = _SAMPLE) -> list[JpegPlace]:
    """Finds the JPEGs of random records, so that they can be read without parsing.

    Args:
        shards: the records.
        count: the maximum number of JPEGs.

    Returns:
        The place of each JPEG.

    Raises:
        UserError: a record has no image.
    """
    places = []
    for record in np.random.default_rng(0).permutation(shards.usable)[:count].tolist():
        example = read_example(shards, record)
        encoded = decode_example(memoryview(example)).get(ENCODED)
        if not isinstance(encoded, memoryview):
            raise UserError(
                f"record {record} has no image",
                path=shards.paths[shards.shard[record]],
                remedy="build the shards again",
            )
        start = int(shards.offsets[record]) + HEADER_BYTES + _address(encoded) - _address(example)
        places.append(JpegPlace(shards.paths[shards.shard[record]], start, len(encoded)))
    return places


def _address(data: bytes | memoryview) -> int:
    return np.frombuffer(data, np.uint8).__array_interface__["data"][0]


def _threads(shards: ShardSet, workers: int) -> Generator[int, None, None]:
    from simplejpeg import decode_jpeg

    def decode(places: Sequence[JpegPlace]) -> int:
        for place in places:
            decode_jpeg(read_bytes(*place))  # releases the GIL while it decodes
        return len(places)

    places = itertools.cycle(find_jpegs(shards))
    chunks = (list(itertools.islice(places, _CHUNK)) for _ in itertools.count())
    with ThreadPoolExecutor(workers) as pool:
        tasks = deque(pool.submit(decode, next(chunks)) for _ in range(2 * workers))
        while True:
            done = tasks.popleft().result()
            tasks.append(pool.submit(decode, next(chunks)))
            yield done


def _tensorflow(settings: Settings) -> Generator[int, None, None]:
    import tensorflow as tf

    def decode(serialized: tf.Tensor) -> tf.Tensor:
        encoded = tf.io.parse_single_example(serialized, {ENCODED: tf.io.FixedLenFeature([], tf.string)})[ENCODED]
        return tf.shape(tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"))

    files = [str(path) for path in settings.shards.paths]
    dataset = tf.data.TFRecordDataset(files).repeat().map(decode, num_parallel_calls=settings.workers)
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1
    for _ in dataset.batch(settings.batch_size).prefetch(settings.prefetch).with_options(options):
        yield settings.batch_size


def _dali(settings: Settings, device: str) -> Generator[int, None, None]:
    from nvidia.dali import fn, pipeline_def, tfrecord, types

    paths = [str(path) for path in settings.shards.paths]

    @pipeline_def(
        batch_size=settings.batch_size, num_threads=settings.workers, device_id=None if device == "cpu" else 0
    )
    def graph() -> Any:
        features = {ENCODED: tfrecord.FixedLenFeature((), tfrecord.string, "")}
        record = fn.readers.tfrecord(path=paths, index_path=[f"{path}.idx" for path in paths], features=features)
        return fn.decoders.image(record[ENCODED], device=device, output_type=types.RGB, adjust_orientation=False)

    pipeline = graph(prefetch_queue_depth=settings.prefetch)
    pipeline.build()
    while True:
        pipeline.run()
        yield settings.batch_size
