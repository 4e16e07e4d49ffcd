"""Helpers of the builder's tests: folders of images, and readers of the shards."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import UserError
from pipelines.building.build import build
from pipelines.building.options import BuildOptions
from pipelines.building.sources import open_source
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


def build_with_kills(command: Sequence[str], output: Path, moments: Sequence[str]) -> None:
    """Kills a build each time that a file of the next pattern is in its output, then repeats its command to the end."""
    for moment in moments:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and not list(output.glob(moment)):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    # 2 if the last kill came too late and the data set was already complete.
    assert result.returncode in (0, 2), result.stderr


def refuses_a_changed_source(
    try_build: Callable[[], object], change: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that stops before its first shard begins again with the same source, and not after a change of it."""

    def stop(*_: object) -> None:
        raise UserError("stopped")

    monkeypatch.setattr("pipelines.building.build._build_split", stop)
    for _ in range(2):
        with pytest.raises(UserError, match="stopped"):
            try_build()
    change()
    with pytest.raises(UserError, match="has an unfinished build of other images or options"):
        try_build()


def build_and_stop(
    monkeypatch: pytest.MonkeyPatch,
    stop: Callable[[pytest.MonkeyPatch], None],
    source: Path,
    output: Path,
    options: BuildOptions = OPTIONS,
) -> None:
    """A build that `stop` interrupts."""
    with monkeypatch.context() as patch:
        stop(patch)
        with pytest.raises(KeyboardInterrupt):
            build(open_source(source), output, options)


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
