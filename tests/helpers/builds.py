"""Helpers of the builder's tests: folders of images, and readers of the shards."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.building.options import BuildOptions
from pipelines.shards import records
from tests.helpers.data import jpeg, photo

ROOT = Path(__file__).parents[2]
CLASSES = ("n01440764", "crane bird", "Straße ü")
TRAIN_PER_CLASS, VALIDATION_PER_CLASS = 44, 5  # 132 images: two shards of 66
OPTIONS = BuildOptions(train_shards=2, validation_shards=2)


def write_images(root: Path) -> Path:
    """Writes folders of good JPEGs. Names have spaces and non-ASCII letters."""
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN_PER_CLASS), ("validation", VALIDATION_PER_CLASS)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(20, 60, 2)
                (folder / f"Bild ä {number}.JPEG").write_bytes(jpeg(photo(rng, label, height, width)))
            (folder / ".DS_Store").write_bytes(b"not looked at")
    return root


def read_with_tensorflow(directory: Path, split: str) -> list[dict[str, Any]]:
    """Every record of a split, in order, read with TensorFlow only."""
    import tensorflow as tf

    features = {
        records.ENCODED: tf.io.FixedLenFeature([], tf.string),
        records.HEIGHT: tf.io.FixedLenFeature([], tf.int64),
        records.WIDTH: tf.io.FixedLenFeature([], tf.int64),
        records.COLORSPACE: tf.io.FixedLenFeature([], tf.string),
        records.CHANNELS: tf.io.FixedLenFeature([], tf.int64),
        records.FORMAT: tf.io.FixedLenFeature([], tf.string),
        records.FILENAME: tf.io.FixedLenFeature([], tf.string),
        records.LABEL: tf.io.FixedLenFeature([], tf.int64),
        records.SYNSET: tf.io.FixedLenFeature([], tf.string),
        records.TEXT: tf.io.FixedLenFeature([], tf.string),
    }
    paths = sorted(str(path) for path in directory.glob(f"{split}-?????-of-?????"))
    dataset = tf.data.TFRecordDataset(paths).map(lambda data: tf.io.parse_single_example(data, features))
    return list(dataset.as_numpy_iterator())


def contents(directory: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by relative path."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def stop_before_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed right after dataset.json."""

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.building.build.clean_up", killed)


def replace_with_the_same_size_and_time(source: Path) -> None:
    """As `cp -p` or `rsync -t` do: only the inode shows it."""
    for path in sorted(source.rglob("*.JPEG")):
        data, times = path.read_bytes(), path.stat()
        path.unlink()
        path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
