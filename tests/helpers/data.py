"""A data set small enough to write in every test session: photo-like JPEGs in TFRecord shards, without TensorFlow."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.shards import records
from pipelines.shards.dataset import ClassInfo, DatasetInfo, ShardInfo, SplitInfo
from pipelines.shards.index import scan, write_index
from pipelines.shards.shard_set import write_sizes

NUM_CLASSES = 10
TRAIN_RECORDS, TRAIN_SHARDS = 101, 3  # both counts are prime: no batch size divides them
VALIDATION_RECORDS, VALIDATION_SHARDS = 37, 2


def photo(rng: np.random.Generator, label: int, height: int, width: int) -> Image.Image:
    """A smooth random field of RGB colours around the tint of class `label`."""
    tint = 255 * (0.3 + 0.4 * np.random.default_rng(label).random(3))
    coarse = tint + rng.normal(0, 45, (*rng.integers(3, 9, 2), 3))
    field = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    return field.resize((width, height), Image.Resampling.BICUBIC)


def write_tiny_dataset(
    directory: Path,
    *,
    seed: int = 0,
    label_base: int = 1,
    num_classes: int = NUM_CLASSES,
    draw: Callable[[np.random.Generator, int, int, int], Image.Image] = photo,
    sides: tuple[int, int] = (40, 120),
    is_sorted: bool = False,
) -> Path:
    """Writes shards, indexes, sizes and dataset.json into `directory` and returns it.

    10 classes, a tint each; 101 training records in 3 shards, 37 validation records in 2; JPEGs whose `sides` are
    40 to 120 pixels, as `draw` gives them for (rng, label, height, width).
    With TRAIN_RECORDS classes each training record has its own label, which says what was read. Records are shuffled,
    or sorted by class (`is_sorted`).
    """
    rng = np.random.default_rng(seed)
    counts = {"train": (TRAIN_RECORDS, TRAIN_SHARDS), "validation": (VALIDATION_RECORDS, VALIDATION_SHARDS)}
    splits = {
        split: _write_split(
            directory, split, _labels(rng, records, num_classes, is_sorted), shards, label_base, rng, draw, sides
        )
        for split, (records, shards) in counts.items()
    }
    classes = [ClassInfo(name=f"class {number}") for number in range(num_classes)]
    DatasetInfo(label_base=label_base, classes=classes, splits=splits).save(directory)
    return directory


def _labels(rng: np.random.Generator, records: int, num_classes: int, is_sorted: bool) -> np.ndarray:
    labels = rng.permutation(np.arange(records) % num_classes)
    return np.sort(labels) if is_sorted else labels


def jpeg(image: Image.Image, kind: int = 0) -> bytes:
    """A JPEG of quality 90, chroma subsampled as cameras do; kinds 1, 2, 3: with full chroma, progressive, grey."""
    stream = io.BytesIO()
    image = image.convert("L") if kind == 3 else image
    image.save(stream, "JPEG", quality=90, subsampling=0 if kind == 1 else 2, progressive=kind == 2)
    return stream.getvalue()


def example(encoded: bytes, label: int) -> bytes:
    """A serialized `tf.train.Example` with the features that readers need; `label` as stored, base included."""
    return records.encode_example({records.ENCODED: encoded, records.LABEL: label})


def _write_split(
    directory: Path,
    split: str,
    labels: np.ndarray,
    num_shards: int,
    label_base: int,
    rng: np.random.Generator,
    draw: Callable[[np.random.Generator, int, int, int], Image.Image],
    sides: tuple[int, int],
) -> SplitInfo:
    sizes = rng.integers(sides[0], sides[1] + 1, (len(labels), 2))
    shards = []
    for number, part in enumerate(np.array_split(np.arange(len(labels)), num_shards)):
        path = directory / f"{split}-{number:05d}-of-{num_shards:05d}"
        images = (jpeg(draw(rng, labels[i], *sizes[i]), int(i) % 8) for i in part)
        framed = [
            records.frame(example(image, int(labels[i]) + label_base)) for i, image in zip(part, images, strict=True)
        ]
        path.write_bytes(b"".join(framed))
        write_index(path, scan(path))
        shards.append(ShardInfo(file=path.name, records=len(part), bytes=path.stat().st_size))
    write_sizes(directory / f"{split}-sizes.npy", sizes)
    return SplitInfo(shards=shards, sizes=f"{split}-sizes.npy")
