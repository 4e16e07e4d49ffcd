"""Exports a trained model for other programs: python -m kimagenet.export RUN_OR_MODEL --output DIR"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kimagenet import cli
from kimagenet.inference import trained
from pipelines.augment import AugmentSpec
from pipelines.errors import RunFailed, UserError, first_line, reason
from pipelines.loader import BatchSpec
from pipelines.system.files import atomic_folder, entries_of_killed, folders_of_killed

if TYPE_CHECKING:
    import keras

    from kimagenet.inference.exporters import Exporter

EXPORT_VERSION = 1
FORMATS = ("savedmodel", "onnx", "tflite")
TOLERANCE = 1e-5  # of probabilities, against the Keras model

DESCRIPTION = """Writes a folder that other programs can use without kimagenet: the model, classes.txt (the class names
in the order of the probabilities, one on each line) and export.json. A SavedModel takes image files as
strings [N], shrinks them if the shards were built with --short-side, and crops and scales them as an evaluation does. A
file that it cannot decode has a row of NaN, and false in `readable` [N]. It ignores EXIF, so images have to be upright.
ONNX and TFLite take float32 images [N, S, S, 3] in [-1, 1]. All compute in float32. The command reads the result again
and compares it with the Keras model before the folder gets its name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), export, arguments)


def make_parser() -> cli.Parser:
    """The flags."""
    parser = cli.Parser("python -m kimagenet.export", "RUN_OR_MODEL --output DIR [flags]", DESCRIPTION)
    trained.add_flags(parser)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    add("--format", choices=FORMATS, default=FORMATS[0], help="what to write (savedmodel)")
    cli.add_class_names(parser)
    return parser


def export(flags: argparse.Namespace) -> None:
    """Writes the folder, whole or not at all.

    Raises:
        UserError: the flags, the model or the output folder are wrong.
        RunFailed: the export does not give the model's probabilities.
    """
    model_file = trained.chosen(flags)
    _check_output(flags.output)
    _check_packages(flags.format)
    for leftover in folders_of_killed(Path(os.path.abspath(flags.output))):
        print(f"{leftover}: a stopped export left it; remove it, unless another export is writing it", file=sys.stderr)
    augment = AugmentSpec.evaluation(model_file.crop_ratio if flags.crop_ratio is None else flags.crop_ratio)
    cli.import_tensorflow()
    from kimagenet.inference import exporters

    exporters.use_cpu()
    model = exporters.in_float32(model_file.load())
    classes = trained.class_names(model_file, model.output_shape[-1], flags.names_from)
    batch = BatchSpec(1, model.input_shape[1])
    exporter = exporters.EXPORTERS[flags.format]
    try:
        with atomic_folder(Path(os.path.abspath(flags.output))) as folder:
            write_text(folder / "classes.txt", "".join(f"{name}\n" for name in classes))
            difference, compared = write_and_compare(exporter, model, batch, augment, folder, model_file.short_side)
            if not difference <= TOLERANCE:  # NaN is no success
                what = f"the {flags.format} gives other probabilities than Keras, by up to {difference:.1e}"
                raise RunFailed(what, path=model_file.model, remedy="nothing was written")
            about = {
                **describe(flags.format, model_file, classes, batch.image_size, augment),
                "input": exporter.takes.format(size=batch.image_size),
                "largest_difference": difference,
                "compared_on": compared,
            }
            write_text(folder / "export.json", json.dumps(about, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot be written ({reason(error)})", path=flags.output) from None
    print(f"{flags.output}: {flags.format} of {model_file.model}, {about['input']} → {about['output']}")
    if model_file.short_side and flags.format != "savedmodel":
        short = model_file.short_side
        print(f"shrink images with a shorter side over {short} to {short} first, as the builder of the shards did")
    print(f"compared with Keras on {compared} generated images: probabilities differ by up to {difference:.1e}")


def write_and_compare(
    exporter: "Exporter",
    model: "keras.Model",
    batch: BatchSpec,
    augment: AugmentSpec,
    folder: Path,
    short_side: int | None = None,
) -> tuple[float, int]:
    """Exports the model and compares the export with it. Hides what the libraries write to stderr.

    Args:
        exporter: of the format.
        model: the Keras model in float32.
        batch: the shape of its input.
        augment: how images are cropped.
        folder: where to write.
        short_side: the shorter side to which the builder shrank larger images, pixels; None: it did not.

    Returns:
        The largest difference of a probability, and the number of images that were compared.

    Raises:
        RunFailed: the converter cannot export this model.
    """
    with cli.without_notes():
        try:
            exporter.write(model, batch, augment, folder, short_side)
            return exporter.compare(model, batch, augment, folder, short_side)
        except OSError:
            raise
        except Exception as error:  # converters raise many types
            reason = first_line(error)
    raise RunFailed(f"{model.name}: the converter fails, so this model cannot be exported ({reason})")


def describe(
    name: str, model_file: trained.Trained, classes: Sequence[str], image_size: int, augment: AugmentSpec
) -> dict[str, Any]:
    """What export.json, version 1, says about the model: `format`, `model` (the file), `classes`, `image_size`,
    `crop_ratio`, `short_side` and `output`.

    `short_side` is the side to which larger images were shrunk when the shards were built, or null. export.json also
    has `input`, `largest_difference` (of a probability from the Keras model's) and `compared_on` (number of images).
    """
    return {
        "version": EXPORT_VERSION,
        "format": name,
        "model": str(model_file.model),
        "classes": list(classes),
        "image_size": image_size,
        "crop_ratio": augment.center_crop,
        "short_side": model_file.short_side,
        "output": f"probabilities: float32 [N, {len(classes)}]",
    }


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8."""
    path.write_text(text, encoding="utf-8")


def _check_output(output: Path) -> None:
    if output.exists() and not (output.is_dir() and set(output.iterdir()) == set(entries_of_killed(output))):
        raise UserError("exists and is not an empty folder", path=output, remedy="choose another --output")
    if not (parent := output.absolute().parent).is_dir():
        raise UserError(f"cannot be created, there is no folder {parent}", path=output)


def _check_packages(name: str) -> None:
    missing = [p for p in ("tf2onnx", "onnxruntime") if name == "onnx" and importlib.util.find_spec(p) is None]
    if missing:
        raise UserError(f"--format onnx needs the package {missing[0]}", remedy="`pip install onnxruntime tf2onnx`")


if __name__ == "__main__":
    sys.exit(main())
