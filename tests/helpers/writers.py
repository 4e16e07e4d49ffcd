"""Writes the same images as other projects do, with their own packages. A test skips where a package is missing."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.layouts import Classes

TFDS_NAME = "pictures"


def package(name: str) -> Any:
    """A package of another project; the test is skipped if it is not installed."""
    return pytest.importorskip(name, reason=f"the package {name} is not installed: uv sync --extra writers")


def rows(classes: Classes, names: Sequence[str]) -> Iterator[tuple[str, bytes | None, int]]:
    """File name, bytes and label of each file; classes in the order of `names`, files of all classes in turn."""
    files = [list(classes.get(name, {}).items()) for name in names]
    for turn in range(max(map(len, files), default=0)):
        for label, items in enumerate(files):
            if turn < len(items):
                yield (*items[turn], label)


def class_names(train: Classes) -> list[str]:
    """The classes in label order."""
    return sorted(train)


def hugging_face_parquet(root: Path, train: Classes, validation: Classes, shards: int = 2) -> None:
    """data/train-00000-of-00002.parquet and so on, by the package `datasets`."""
    datasets = package("datasets")
    names = class_names(train)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    (root / "data").mkdir(parents=True)
    for split, classes, count in (("train", train, shards), ("validation", validation, 1)):
        table = [row for row in rows(classes, names) if row[1] is not None]
        images = [{"bytes": data, "path": name} for name, data, _ in table]
        labels = [label for *_, label in table]
        whole = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        for number in range(count):
            part = whole.shard(count, number, contiguous=True)
            part.to_parquet(str(root / "data" / f"{split}-{number:05d}-of-{count:05d}.parquet"))


def webdataset_tars(root: Path, train: Classes, validation: Classes, shards: int = 2) -> None:
    """pictures-train-0000.tar and so on, by the package `webdataset`: image, .cls and .json with the file name."""
    wds = package("webdataset")
    names = class_names(train)
    root.mkdir(parents=True)
    (root / "classnames.txt").write_text("".join(f"{name}\n" for name in names))
    for split, classes, count in (("train", train, shards), ("validation", validation, 1)):
        table = [row for row in rows(classes, names) if row[1] is not None]
        for number in range(count):
            with wds.TarWriter(str(root / f"pictures-{split}-{number:04d}.tar")) as tar:
                for key, (name, data, label) in enumerate(table[number::count]):
                    suffix = Path(name).suffix.lower().removeprefix(".")
                    suffix = "jpg" if suffix in ("jpeg", "txt") else suffix
                    tar.write(
                        {
                            "__key__": f"{split}{number:02d}{key:06d}",
                            suffix: data,
                            "cls": str(label).encode(),
                            "json": json.dumps({"filename": name}).encode(),
                        }
                    )


def csv_list(root: Path, train: Classes, validation: Classes) -> Path:
    """pictures.csv with path, label and split, and the files in folders that say nothing of classes."""
    root.mkdir(parents=True)
    with open(root / "pictures.csv", "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "label", "split"])
        for split, classes in (("train", train), ("validation", validation)):
            for number, (name, data, label) in enumerate(rows(classes, class_names(train))):
                path = root / "files" / f"{split}{number % 7}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if data is None:
                    path.mkdir()
                else:
                    path.write_bytes(data)
                table.writerow([path.relative_to(root), class_names(train)[label], split])
    return root / "pictures.csv"


def tfds_shards(root: Path, train: Classes, validation: Classes, encoding: str = "jpeg") -> Path:
    """Shards of tensorflow-datasets, by the package itself: image, label and file_name.

    Returns:
        The folder of the shards, NAME/VERSION below `root`.
    """
    tfds = package("tensorflow_datasets")
    names = class_names(train)
    splits = {"train": train, "validation": validation}

    class Pictures(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc, name-defined]
        """The images."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(encoding_format=encoding),
                "label": tfds.features.ClassLabel(names=names),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _: Any) -> dict[str, Iterable]:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
            for number, (name, data, label) in enumerate(rows(splits[split], names)):
                if data is not None:
                    yield f"{number:06d}", {"image": io.BytesIO(data), "label": label, "file_name": name}

    builder = Pictures(data_dir=str(root))
    builder.download_and_prepare()
    return Path(builder.data_dir)
