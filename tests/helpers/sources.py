"""The same images, good and damaged, in every layout."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.building.sources import imagenet
from tests.helpers import layouts
from tests.helpers.data import jpeg, photo

TRAIN_PER_CLASS = 50
LABELS = imagenet.validation_labels()
WNIDS = tuple(LABELS[imagenet.validation_name(number)] for number in (3, 1, 2))  # in no order
REJECTED = 6


def nasty(good: bytes) -> dict[str, bytes | None]:
    """Files that occur among images of users; REJECTED of them cannot be decoded."""
    picture = Image.open(io.BytesIO(good))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
        "cmyk.JPEG": ("JPEG", picture.convert("CMYK"), {}),
        "grey.JPEG": ("JPEG", picture.convert("L"), {}),
        "progressive.JPEG": ("JPEG", picture, {"progressive": True}),
        "turned.JPEG": ("JPEG", picture, {"exif": exif}),
        "pixel.JPEG": ("JPEG", Image.new("RGB", (1, 1)), {}),
        "png.JPEG": ("PNG", picture, {}),
        "a.webp": ("WEBP", picture, {}),
        "a.gif": ("GIF", picture, {}),
        "a.bmp": ("BMP", picture, {}),
    }
    files: dict[str, bytes | None] = {"half.JPEG": good[: len(good) // 2], "nine bytes short.JPEG": good[:-9]}
    files["no end.JPEG"] = good[:-2]
    files |= {"empty.JPEG": b"", "random.JPEG": np.random.default_rng(0).bytes(999), "notes.txt": b"no image"}
    for name, (kind, image, options) in kinds.items():
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        files[name] = stream.getvalue()
    return files | {"x.jpg": None}


def pictures() -> tuple[dict[str, dict[str, bytes | None]], dict[str, dict[str, bytes | None]]]:
    """The files of each class for train and validation."""
    rng = np.random.default_rng(5)
    train: dict[str, dict[str, bytes | None]] = {}
    for label, wnid in enumerate(WNIDS):
        names = [f"{wnid}_{number}.JPEG" for number in rng.choice(20000, TRAIN_PER_CLASS, replace=False)]
        names[:2] = f"Bild ä {label}.JPEG", f"{wnid}_{'long' * 40}.JPEG"  # not ASCII; longer than a tar header's field
        train[wnid] = {name: jpeg(photo(rng, label, *rng.integers(20, 50, 2))) for name in names}
    first = train[WNIDS[0]]
    good = next(iter(first.values())) or b""
    first |= nasty(good)
    names = [name for name, wnid in LABELS.items() if wnid in WNIDS][:20]
    validation: dict[str, dict[str, bytes | None]] = {wnid: {} for wnid in WNIDS}
    for name in names:
        validation[LABELS[name]][name] = jpeg(photo(rng, 7, 30, 40))
    return train, validation


def write_sources(root: Path) -> Path:
    """Writes the images in each layout, in folders with the names of the layouts."""
    train, validation = pictures()
    for name, write in layouts.LAYOUTS.items():
        write(root / name, train, validation)
    return root
