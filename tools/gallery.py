"""Draws every augmentation: one record with several values of each parameter, a row for each loader."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kimagenet.cli import Parser, import_tensorflow, positive_int, run
from kimagenet.commands.preview import draw_sheet, first_images
from pipelines import AugmentSpec, BatchSpec, ShardSet, open_loader
from pipelines.policy import OPERATIONS, Policy
from pipelines.system.files import atomic_writer

Sweep = list[tuple[str, dict[str, Any]]]  # the title of a column, and the fields of its `AugmentSpec`

# The record keeps its random numbers, so within a row only the range of the parameter changes.
SWEEPS: dict[str, Sweep] = {
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
# Of the operations of policies, in the ranges of TrivialAugmentWide: a row for each, by its magnitude.
MAGNITUDES = (0, 6, 12, 18, 24, 30)
POLICY = {
    name: [(f"magnitude {m}", {"policy": Policy(magnitude=m, names=(name,))}) for m in MAGNITUDES]
    for name in OPERATIONS
}


def make_parser() -> Parser:
    """The parser of this command."""
    parser = Parser("python -m tools.gallery", "DIR --output FOLDER [flags]", __doc__ or "")
    parser.add_argument("directory", metavar="DIR", type=Path, help="folder of shards")
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, required=True, help="one PNG for each parameter, and one for policies"
    )
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
    """Draws a picture for each parameter, and one of the operations of policies."""
    shards = ShardSet.open(flags.directory, "train")
    import_tensorflow()
    flags.output.mkdir(parents=True, exist_ok=True)
    for parameter, sweep in SWEEPS.items():
        rows = _rows(sweep, shards, flags)
        print(f"{_write(rows, sweep, flags.output / f'{parameter}.png')}: {_difference(rows)}")
    operations = {name: _rows(sweep, shards, flags) for name, sweep in POLICY.items()}
    first = {name: next(iter(rows.values())) for name, rows in operations.items()}
    print(_write(first, next(iter(POLICY.values())), flags.output / "policy.png"))
    for name, rows in operations.items():
        print(f"  {name}: {_difference(rows)}")


def _rows(sweep: Sweep, shards: ShardSet, flags: argparse.Namespace) -> dict[str, list[Image.Image]]:
    """The images of a sweep, by loader."""
    return {
        name: [render(name, shards, AugmentSpec(**changes), flags.image_size, flags.seed) for _, changes in sweep]
        for name in flags.loader
    }


def _write(rows: dict[str, list[Image.Image]], sweep: Sweep, path: Path) -> Path:
    sheet = draw_sheet(rows, [title for title, _ in sweep])
    with atomic_writer(path) as stream:
        sheet.save(stream, "PNG", optimize=True)
    return path


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
        return first_images(opened, 0)[0]


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
