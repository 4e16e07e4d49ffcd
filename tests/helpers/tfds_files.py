"""Shards with the names, features and files beside them that tensorflow-datasets writes, made without it.

`tests/test_foreign_shards.py` also adopts what the package itself writes, if it is installed.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.shards import records


class Picture(NamedTuple):
    """One record."""

    encoded: bytes
    label: int
    name: str = "a.JPEG"


def write_split(folder: Path, split: str, pictures: Sequence[Picture], shards: int = 1, name: str = "pets") -> None:
    """Writes NAME-SPLIT.tfrecord-00000-of-00001 and so on, in place of earlier ones of this split."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{name}-{split}.tfrecord*"):
        path.unlink()
    for number in range(shards):
        path = folder / f"{name}-{split}.tfrecord-{number:05d}-of-{shards:05d}"
        path.write_bytes(b"".join(records.frame(_example(picture)) for picture in pictures[number::shards]))


def _example(picture: Picture) -> bytes:
    return records.encode_example(
        {"image": picture.encoded, "label": picture.label, "file_name": picture.name.encode()}
    )


def write_files(folder: Path, classes: Sequence[str], **more: dict) -> None:
    """Writes features.json, with more features if given, and label.labels.txt."""
    features = {
        "image": {"pythonClassName": "…Image", "image": {"encodingFormat": "jpeg"}},
        "label": {"pythonClassName": "…ClassLabel", "classLabel": {"numClasses": str(len(classes))}},
        "file_name": {"pythonClassName": "…Text", "text": {}},
        **more,
    }
    content = {"pythonClassName": "…FeaturesDict", "featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(content))
    (folder / "label.labels.txt").write_text("".join(f"{name}\n" for name in classes))
