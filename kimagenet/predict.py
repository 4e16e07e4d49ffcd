"""Predicts the classes of images: python -m kimagenet.predict RUN_OR_MODEL IMAGE…"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kimagenet import cli
from kimagenet.inference import trained
from kimagenet.json_output import finite
from pipelines.augment import AugmentSpec
from pipelines.errors import UserError
from pipelines.loader import BatchSpec
from pipelines.system.files import user_path
from pipelines.system.processes import cpu_count

if TYPE_CHECKING:
    from kimagenet.inference.outputs import Outputs
    from pipelines.images import ImageFile

PREDICTION_VERSION = 1
BATCH_SIZE = 32

DESCRIPTION = """Prints the most probable classes of each image. The model gets the same pixels as in an evaluation: the
file is cleaned as in a build of shards (upright by EXIF, RGB), then cropped and scaled as in an evaluation. Files
that cannot be read are listed on stderr, and the exit code is then 1, or 2 if no file could be read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), predict, arguments, is_filter=True)


def make_parser() -> cli.Parser:
    """The flags."""
    parser = cli.Parser("python -m kimagenet.predict", "RUN_OR_MODEL IMAGE… [flags]", DESCRIPTION)
    trained.add_flags(parser)
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="a file, a folder (with all files below it), or - for a list on stdin",
    )
    add("--top", type=cli.positive_int, default=5, metavar="N", help="number of classes; default: 5")
    add("--json", action="store_true", help="print one JSON object per line for each image, not a table")
    cli.add_class_names(parser)
    cli.add_decoding_threads(parser)
    return parser


def predict(flags: argparse.Namespace) -> int:
    """Prints the most probable classes of each image; returns the exit code.

    With `--json` a line is an object with `version` (1), `file`, and either `predictions` or `error`. `predictions` is
    a list of `class` (its name), `label` (its number) and `probability` (null if it is not finite).

    Raises:
        UserError: the model or a name on the command line is wrong, or there is no image.
    """
    model_file = trained.chosen(flags)
    check_exist(flags.images)
    crop_ratio = model_file.crop_ratio if flags.crop_ratio is None else flags.crop_ratio
    augment = AugmentSpec.evaluation(crop_ratio)
    cli.import_tensorflow()
    import numpy as np
    import tensorflow as tf

    from kimagenet.inference.outputs import make_output_step
    from pipelines.images import ImageFile, ImageReader

    model = model_file.load()
    classes = trained.class_names(model_file, model.output_shape[-1], flags.names_from)
    reader = ImageReader(BatchSpec(BATCH_SIZE, model.input_shape[1]), augment, model_file.short_side)
    step = make_output_step(model, tf.distribute.get_strategy(), flags.top)
    done = failed = 0
    for batch in reader.batches(map(ImageFile, list_files(flags.images)), flags.workers or cpu_count()):
        count = len(batch.files)
        if count:
            show(batch.files, step(batch.images, np.zeros(count, np.int32), np.ones(count)), classes, flags.json)
        for file, reason in batch.rejected:
            show_error(file.path, reason, flags.json)
        done, failed = done + count, failed + len(batch.rejected)
    if not done + failed:
        raise UserError("there is no image", remedy="name files or folders, one on each line with -")
    if not failed:
        return 0
    return cli.EXIT_FAILED if done else cli.EXIT_USER_ERROR


def check_exist(images: Sequence[str]) -> None:
    """Checks the names on the command line.

    Raises:
        UserError: a name is neither a file nor a folder with files.
    """
    for name in images:
        path = user_path(name)
        if name != "-" and not path.exists():
            raise UserError("no such file or folder", path=name)
        if path.is_dir() and not any(_files_below(path)):
            raise UserError("there is no file in it", path=name)


def list_files(images: Sequence[str]) -> Iterator[Path]:
    """All files, in the order of the command line. Files of a folder come in the order of their names, without
    hidden ones.
    """
    for name in images:
        if name == "-":
            yield from (Path(line) for line in map(str.strip, sys.stdin) if line)
        elif (path := user_path(name)).is_dir():
            yield from _files_below(path)
        else:
            yield path


def _files_below(folder: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(files) if not name.startswith("."))


def show(files: "Sequence[ImageFile]", outputs: "Outputs", classes: Sequence[str], as_json: bool) -> None:
    """Prints the most probable classes of a batch."""
    for file, labels, probabilities in zip(files, outputs.classes, outputs.probabilities, strict=True):
        found = [(classes[label], int(label), float(p)) for label, p in zip(labels, probabilities, strict=True)]
        if as_json:
            keys = ("class", "label", "probability")
            predictions = [dict(zip(keys, (name, label, finite(p)), strict=True)) for name, label, p in found]
            print_json(file.path, predictions=predictions)
        else:
            print(file.path)
            print("".join(f"  {p:8.3%}  {name}\n" for name, _, p in found), end="", flush=True)


def show_error(path: Path, reason: str, as_json: bool) -> None:
    """Prints why a file has no prediction."""
    print(f"error: {path}: {reason}", file=sys.stderr)
    if as_json:
        print_json(path, error=reason)


def print_json(path: Path, **content: Any) -> None:
    """Prints one line about a file."""
    line = {"version": PREDICTION_VERSION, "file": str(path), **content}
    print(json.dumps(line, allow_nan=False), flush=True)


if __name__ == "__main__":
    sys.exit(main())
