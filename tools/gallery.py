"""Draws every augmentation: one record with several values of each parameter, a row for each loader."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kimagenet.cli import Parser, import_tensorflow, positive_int, run
from kimagenet.commands.preview import draw_sheet
from pipelines import AugmentSpec, BatchSpec, ShardSet, open_loader
from pipelines.system.files import atomic_writer

# The record keeps its random numbers, so within a row only the range of the parameter changes.
SWEEPS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "crop_area": [(f"{low:g}…1", {"crop_area": (low, 1.0)}) for low in (1.0, 0.8, 0.6, 0.35, 0.2, 0.08)],
    "crop_aspect": [
        (f"{1 / x:.2g}…{x:.2g}", {"crop_area": (0.3, 0.3), "crop_aspect": (1 / x, x)})
        for x in (1.0, 1.15, 1.33, 1.6, 2.0, 3.0)
    ],
    "flip": [(f"{p:g}", {"flip": p}) for p in (0.0, 1.0)],
    "rotation": [
        (f"±{degrees}°", {"rotation": float(degrees), "rotation_probability": 1.0})
        for degrees in (0, 5, 15, 30, 60, 180)
    ],
    "brightness": [(f"±{shift:g}", {"brightness": shift}) for shift in (0.0, 0.125, 0.25, 0.4, 0.6, 0.8)],
    "contrast": [(f"{x:g}", {"contrast": (x, x)}) for x in (0.0, 0.5, 0.8, 1.0, 1.5, 2.5)],
    "saturation": [(f"{x:g}", {"saturation": (x, x)}) for x in (0.0, 0.5, 0.8, 1.0, 1.5, 2.5)],
    "hue": [(f"±{degrees}°", {"hue": float(degrees)}) for degrees in (0, 10, 20, 45, 90, 180)],
}


def make_parser() -> Parser:
    """The parser of this command."""
    parser = Parser("python -m tools.gallery", "DIR --output FOLDER [flags]", __doc__ or "")
    parser.add_argument("directory", metavar="DIR", type=Path, help="folder of shards")
    parser.add_argument("--output", metavar="FOLDER", type=Path, required=True, help="one PNG for each parameter")
    parser.add_argument("--loader", nargs="+", default=["dali", "tfdata"], help="one row each (default: dali tfdata)")
    parser.add_argument(
        "--image-size",
        metavar="PIXELS",
        type=positive_int,
        default=144,
        help="side of each picture (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="chooses the record and its random numbers (default: %(default)s)"
    )
    return parser


def draw_gallery(flags: argparse.Namespace) -> None:
    """Draws a picture for each parameter."""
    shards = ShardSet.open(flags.directory, "train")
    import_tensorflow()
    flags.output.mkdir(parents=True, exist_ok=True)
    for parameter, sweep in SWEEPS.items():
        rows = {
            name: [render(name, shards, AugmentSpec(**changes), flags.image_size, flags.seed) for _, changes in sweep]
            for name in flags.loader
        }
        sheet = draw_sheet(rows, [title for title, _ in sweep])
        with atomic_writer(flags.output / f"{parameter}.png") as stream:
            sheet.save(stream, "PNG", optimize=True)
        print(f"{flags.output / parameter}.png: {_difference(rows)}")


def render(loader: str, shards: ShardSet, spec: AugmentSpec, size: int, seed: int) -> Image.Image:
    """The first image of epoch 0. With one seed it is the same record for every spec.

    Args:
        loader: name of the loader.
        shards: the records.
        spec: the augmentation.
        size: side of the image in pixels.
        seed: seed of the order and augmentation.

    Returns:
        The image.
    """
    with open_loader(loader, shards, BatchSpec(1, size, "uint8"), spec, seed=seed, strict=True) as opened:
        images, _ = next(iter(opened.epoch(0)))
        return Image.fromarray(images.numpy()[0])


def _difference(rows: dict[str, list[Image.Image]]) -> str:
    """How much the rows differ from the first."""
    first, *others = (np.stack([np.asarray(image, np.int16) for image in images]) for images in rows.values())
    if not others:
        return f"{len(first)} images"
    mean, most = max((np.abs(first - other).mean(), np.abs(first - other).max()) for other in others)
    return f"{len(first)} images a row; rows differ by {mean:.3f} grey levels on average, {most} at most"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run(make_parser(), draw_gallery, arguments)


if __name__ == "__main__":
    sys.exit(main())
