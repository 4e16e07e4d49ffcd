"""Reads the files of a run for tests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kimagenet.runs.directory import RunDirectory


def read_log(run: RunDirectory, event: str | None = None) -> list[dict[str, Any]]:
    """The lines of log.jsonl, all or those of one event."""
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    return [line for line in lines if event in (None, line["event"])]


def read_events(directory: Path) -> Iterator[Any]:
    """TensorBoard's events in their order, with checksums checked."""
    import tensorflow as tf

    for path in sorted(directory.glob("*.tfevents")):
        for record in tf.data.TFRecordDataset(str(path)):
            yield tf.compat.v1.Event.FromString(record.numpy())


def final_weights(run: RunDirectory) -> list[np.ndarray]:
    """The weights in final.keras."""
    import keras

    return keras.models.load_model(run.final).get_weights()
