"""A run directory with a model of random weights, its shards, and the image files of many kinds behind them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from tests.helpers.data import photo

IMAGE_SIZE = 32
SHORT_SIDE = 90  # the larger images are shrunk by the builder
# One image per class: its name, size (height, width), format and how it is saved. Its label identifies a record.
KINDS = {
    "cmyk": ((70, 80), "JPEG", {}),
    "exif": ((60, 100), "JPEG", {}),
    "grey": ((75, 64), "JPEG", {}),
    "large": ((180, 240), "JPEG", {"quality": 90}),
    "palette": ((64, 64), "GIF", {}),
    "plain": ((66, 99), "JPEG", {"quality": 90}),
    "png": ((80, 57), "PNG", {}),
    "progressive": ((48, 77), "JPEG", {"progressive": True, "quality": 90}),
    "small": ((20, 17), "JPEG", {"quality": 95}),
    "webp": ((81, 70), "WEBP", {}),
}


@dataclass(frozen=True)
class OddRun:
    """The files of the run.

    Attributes:
        run: the run directory.
        dataset_dir: its shards.
        images: the folder of the image files.
        files: the validation images by class.
    """

    run: RunDirectory
    dataset_dir: Path
    images: Path
    files: dict[str, Path]


def write_odd_run(directory: Path) -> OddRun:
    """Generates the images, builds the shards, saves the model."""
    import keras

    from kimagenet import models
    from kimagenet.runs.directory import save_model
    from pipelines.building.build import build
    from pipelines.building.options import BuildOptions
    from pipelines.building.sources import open_source

    images = directory / "images"
    files = {}
    for label, name in enumerate(KINDS):
        for split in ("train", "validation"):
            files[name] = _write_image(images / split / name, label, name)
    build(open_source(images), directory / "shards", BuildOptions(1, 1, short_side=SHORT_SIDE))

    keras.utils.set_random_seed(1)
    model = models.build("demo", len(KINDS), IMAGE_SIZE)
    for weight in model.trainable_variables:
        weight.assign(2 * weight)  # so that probabilities differ
    run = RunDirectory(directory / "run")
    info = {"dataset_dir": str(directory / "shards"), "classes": list(KINDS), "wnids": [None] * len(KINDS)}
    info["short_side"] = SHORT_SIDE
    run.begin(Recipe(model="demo", image_size=IMAGE_SIZE, batch_size=4, crop_ratio=0.9), info)
    save_model(model, run.final)
    return OddRun(run, directory / "shards", images, files)


def _write_image(folder: Path, label: int, name: str) -> Path:
    (height, width), kind, options = KINDS[name]
    image = photo(np.random.default_rng(label), label, height, width)
    if name in ("cmyk", "grey"):
        image = image.convert("CMYK" if name == "cmyk" else "L")
    if name == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif}
    folder.mkdir(parents=True)
    path = folder / f"{name}.{kind.lower()}"
    image.save(path, kind, **options)
    return path
