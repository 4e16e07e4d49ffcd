"""Draws the same records as each loader gives them, below the images as they are stored."""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from kimagenet import augmentation
from kimagenet.cli import Parser, import_tensorflow, positive_int, run
from kimagenet.json_output import check_writable
from pipelines import AugmentSpec, BatchSpec, EpochPlan, Loader, ShardSet, UserError, open_loader
from pipelines.shards import remedies
from pipelines.system.files import atomic_writer

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_MARGIN, _TITLE = 8, 22
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


def make_parser() -> Parser:
    """The parser of this command."""
    parser = Parser(remedies.program("preview"), "DIR --output PICTURE [flags]", __doc__ or "")
    parser.add_argument("directory", metavar="DIR", type=Path, help="folder of shards")
    parser.add_argument(
        "--output", metavar="PICTURE", type=Path, required=True, help="picture to write: .png, .jpg or .webp"
    )
    parser.add_argument("--loader", nargs="+", default=["dali", "tfdata"], help="one row each (default: dali tfdata)")
    parser.add_argument("--split", default="train", help="split of the records (default: %(default)s)")
    parser.add_argument(
        "--augment",
        metavar="NAME",
        default="full",
        help='"full", "standard", "none", "trivial", "rand:N,M" or "evaluation", with changes as in '
        '"full + rotation=30 + crop_area=0.35:1" (default: %(default)s)',
    )
    parser.add_argument(
        "--columns", metavar="N", type=positive_int, default=8, help="number of records (default: %(default)s)"
    )
    parser.add_argument(
        "--image-size",
        metavar="PIXELS",
        type=positive_int,
        default=160,
        help="side of each picture (default: %(default)s)",
    )
    parser.add_argument("--epoch", type=int, default=0, help="epoch that the records are from (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order and augmentation (default: %(default)s)")
    return parser


def preview(flags: argparse.Namespace) -> None:
    """Draws the picture and writes it."""
    augment = AugmentSpec.evaluation() if flags.augment == "evaluation" else augmentation.spec_of(flags.augment)
    kind = _FORMATS.get(flags.output.suffix.lower())
    if kind is None:
        raise UserError("not the name of a picture", path=flags.output, remedy=f"end it with {' or '.join(_FORMATS)}")
    check_writable(flags.output)
    shards = ShardSet.open(flags.directory, flags.split)
    import_tensorflow()
    columns, size = flags.columns, flags.image_size
    plan = EpochPlan(shards, augment, columns, size, seed=flags.seed, epoch=flags.epoch)
    stored = [shards.read(int(record)) for record in plan.records[:columns]]
    rows = {"stored": [_fitted(image.encoded, size) for image in stored]}
    titles = [shards.classes[image.label - shards.label_base] for image in stored]
    for name in flags.loader:
        batch = BatchSpec(columns, size, "uint8")
        with open_loader(name, shards, batch, augment, seed=flags.seed, strict=True) as loader:
            rows[loader.name] = first_images(loader, flags.epoch)
    sheet = draw_sheet(rows, titles)
    with atomic_writer(flags.output) as stream:
        sheet.save(stream, kind)
    print(f"{flags.output}: {columns} records of {flags.split}, rows: {', '.join(rows)}")


def first_images(loader: Loader, epoch: int) -> list[Image.Image]:
    """The first images of an epoch, with all of their augmentation.

    Args:
        loader: gives uint8 images.
        epoch: from 0.
    """
    from kimagenet.training.steps import to_input
    from kimagenet.training.tones import apply_tones

    images, *_ = next(batches := loader.batches(epoch))
    batches.close()  # type: ignore[attr-defined]
    whole = apply_tones(to_input(images), next(loader.tones(epoch))).numpy()
    return [Image.fromarray(image) for image in np.round((whole + 1) * 127.5).astype(np.uint8)]


def draw_sheet(rows: dict[str, list[Image.Image]], titles: list[str]) -> Image.Image:
    """Draws one row of square images for each name, with titles above the columns.

    Args:
        rows: name of the row -> its images, all of one size.
        titles: one for each column.

    Returns:
        The picture.
    """
    font = ImageFont.load_default(13)
    left = _MARGIN + max(int(font.getlength(name)) for name in rows) + _MARGIN
    size = next(iter(rows.values()))[0].height
    step = size + _MARGIN
    sheet = Image.new("RGB", (left + step * len(titles), _TITLE + _MARGIN + step * len(rows)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        while len(title) > 1 and font.getlength(title) > size:
            title = title[:-2] + "…"
        pen.text((left + column * step, _MARGIN), title, _INK, font)
    for row, (name, images) in enumerate(rows.items()):
        top = _TITLE + _MARGIN + row * step
        pen.text((_MARGIN, top + size // 2), name, _INK, font, anchor="lm")
        for column, image in enumerate(images):
            sheet.paste(image, (left + column * step, top))
    return sheet


def _fitted(encoded: bytes, size: int) -> Image.Image:
    """The whole image in a square of this many pixels, with a margin in grey."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    return ImageOps.pad(image, (size, size), color=(235, 235, 235))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run(make_parser(), preview, arguments)


if __name__ == "__main__":
    sys.exit(main())
