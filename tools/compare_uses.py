"""Checks that evaluation, prediction and every export give the same probabilities for the same records."""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kimagenet import export, predict
from kimagenet.cli import EXIT_FAILED, Parser, import_tensorflow, positive_int, run
from kimagenet.inference import trained
from pipelines import AugmentSpec, BatchSpec, ShardSet
from pipelines.errors import UserError

MAX_DIFFERENCE = 1e-5  # of a probability


def make_parser() -> Parser:
    """The flags."""
    description = f"""{__doc__} Everything is compared, on the CPU, with an evaluation through the first loader. The
    exit code is 1 if a probability differs by more than {MAX_DIFFERENCE:g} or if the five best classes differ."""
    parser = Parser("python -m tools.compare_uses", "RUN [flags]", description)
    add = parser.add_argument
    add("target", metavar="RUN", type=Path, help="a run directory whose data set still exists")
    add("--split", default="validation", help="split of the data set (default: validation)")
    add(
        "--records", metavar="N", type=positive_int, default=100, help="the first N records of the split (default: 100)"
    )
    add("--loaders", metavar="NAME", nargs="+", default=["tfdata", "dali"], help="(default: tfdata, dali)")
    add(
        "--formats",
        metavar="NAME",
        nargs="*",
        default=list(export.FORMATS),
        help=f"exports to check (default: {', '.join(export.FORMATS)})",
    )
    return parser


def compare_uses(flags: argparse.Namespace) -> int:
    """Prints a line for each use of the model.

    Returns:
        The exit code: 1 if the probabilities differ.

    Raises:
        UserError: the target is not a run, or an export fails.
    """
    model_file = trained.find(flags.target)
    if model_file.dataset_dir is None:
        raise UserError("not a run directory", path=flags.target)
    shards = ShardSet.open(model_file.dataset_dir, flags.split)
    import_tensorflow()
    from kimagenet.inference.exporters import use_cpu

    use_cpu()
    records = shards.usable[: flags.records]
    jpegs = [shards.read(int(record)).encoded for record in records]
    expected: np.ndarray | None = None
    is_same = True
    for name, found in probabilities(flags, model_file, shards, jpegs):
        expected = found if expected is None else expected
        difference = float(np.abs(found - expected).max())
        others = int((top5(found) != top5(expected)).any(axis=1).sum())
        print(
            f"{name:20} {len(found)} images: largest difference of a probability {difference:.1e}, "
            f"different top-5 for {others} images"
        )
        is_same = is_same and difference <= MAX_DIFFERENCE and not others
    return 0 if is_same else EXIT_FAILED


def probabilities(
    flags: argparse.Namespace, model_file: trained.Trained, shards: ShardSet, jpegs: Sequence[bytes]
) -> Iterator[tuple[str, np.ndarray]]:
    """Computes the probabilities of every use of the model.

    Args:
        flags: of the command line.
        model_file: the model.
        shards: the split.
        jpegs: the encoded images.

    Returns:
        An iterator of (the name of the use, float32 [N, classes]).

    Raises:
        UserError: an export fails.
    """
    from pipelines.images import ImageReader

    for loader in flags.loaders:
        yield f"evaluate, {loader}", by_evaluation(loader, model_file, shards, len(jpegs))
    with tempfile.TemporaryDirectory() as folder:
        yield "predict", by_predict(flags.target, Path(folder), jpegs, shards.num_classes)
        for name in flags.formats:
            output = Path(folder) / name
            with contextlib.redirect_stdout(sys.stderr):
                if export.main([str(flags.target), f"--output={output}", f"--format={name}"]):
                    raise UserError(f"the export to {name} failed", path=flags.target)
            size = json.loads((output / "export.json").read_text())["image_size"]
            reader = ImageReader(BatchSpec(1, size), AugmentSpec.evaluation(model_file.crop_ratio))
            images = np.stack([reader.pixels(jpeg) for jpeg in jpegs])
            yield f"export, {name}", READ[name](output, jpegs, images)


def by_evaluation(loader: str, model_file: trained.Trained, shards: ShardSet, count: int) -> np.ndarray:
    """Runs the model as `kimagenet.evaluate` does; returns all probabilities, float32 [count, classes]."""
    import tensorflow as tf

    from kimagenet.inference.outputs import make_output_step
    from kimagenet.training.feed import open_feed

    strategy = tf.distribute.get_strategy()
    model = trained.load(model_file.model)
    step = make_output_step(model, strategy, shards.num_classes)
    batch, augment = (
        BatchSpec(model_file.batch_size, model.input_shape[1]),
        AugmentSpec.evaluation(model_file.crop_ratio),
    )
    rows: list[np.ndarray] = []
    with open_feed(strategy, loader, shards, batch, augment, device="cpu", strict=True) as feed:
        for images_labels_weights in feed.epoch(0):
            outputs = step(*images_labels_weights)
            rows += list(in_label_order(outputs.classes, outputs.probabilities))
            if len(rows) >= count:
                break
    return np.stack(rows[:count])


def by_predict(target: Path, folder: Path, jpegs: Sequence[bytes], num_classes: int) -> np.ndarray:
    """Runs `kimagenet.predict` on files; returns the printed probabilities, [N, classes]."""
    files = folder / "files"
    files.mkdir()
    for number, jpeg in enumerate(jpegs):
        (files / f"{number:06}.jpg").write_bytes(jpeg)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        predict.main([str(target), str(files), "--json", f"--top={num_classes}"])
    lines = [json.loads(line)["predictions"] for line in text.getvalue().splitlines()]
    table = [[(item["label"], item["probability"]) for item in line] for line in lines]
    classes, values = np.moveaxis(np.array(table), 2, 0)
    return in_label_order(classes.astype(int), values)


def by_savedmodel(folder: Path, jpegs: Sequence[bytes], images: np.ndarray) -> np.ndarray:
    """Runs an exported SavedModel on the encoded images."""
    import tensorflow as tf

    serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
    return serve(jpeg=tf.constant(list(jpegs)))["probabilities"].numpy()


def by_onnx(folder: Path, jpegs: Sequence[bytes], images: np.ndarray) -> np.ndarray:
    """Runs an exported ONNX model on uint8 images [N, S, S, 3]."""
    import onnxruntime

    return onnxruntime.InferenceSession(str(folder / "model.onnx")).run(None, {"images": images})[0]


def by_tflite(folder: Path, jpegs: Sequence[bytes], images: np.ndarray) -> np.ndarray:
    """Runs an exported LiteRT model on uint8 images [N, S, S, 3]."""
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        interpreter = tf.lite.Interpreter(str(folder / "model.tflite"))
    return interpreter.get_signature_runner()(images=images)["probabilities"]


READ = {"savedmodel": by_savedmodel, "onnx": by_onnx, "tflite": by_tflite}


def in_label_order(classes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Reorders probabilities by label.

    Args:
        classes: int [N, classes], the labels in the order of `values`.
        values: [N, classes], probabilities in any order.
    """
    ordered = np.empty_like(values)
    np.put_along_axis(ordered, classes, values, axis=1)
    return ordered


def top5(values: np.ndarray) -> np.ndarray:
    """The five most probable classes in order, int [N, 5], of probabilities [N, classes]."""
    return np.argsort(-values, axis=1, kind="stable")[:, :5]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run(make_parser(), compare_uses, arguments)


if __name__ == "__main__":
    sys.exit(main())
