"""Trains, evaluates and exports the networks of keras.applications, and compares the evaluation with Keras' own."""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from kimagenet import evaluate, export, train
from kimagenet.catalog import table
from kimagenet.cli import Parser, import_tensorflow, positive_int, run
from kimagenet.json_output import check_writable
from kimagenet.networks.applications import APPLICATIONS, PREFIX
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines import AugmentSpec, BatchSpec, ShardSet, open_loader
from pipelines.system.files import write_atomic

MAX_DIFFERENCE = 1e-3  # of the loss, relative: the scaled last layer also scales what was rounded

COLUMNS = ("network", "takes", "px", "parameters", "loss", "Keras' loss", "top-1", "Keras' top-1", "export", "seconds")


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("python -m tools.try_applications", "DIR --output FILE.md [flags]", __doc__ or "")
    add = parser.add_argument
    add("directory", metavar="DIR", type=Path, help="folder of a few shards: a network is trained for one epoch")
    add("--output", metavar="FILE.md", type=Path, required=True, help="Markdown file for the table")
    add("--networks", nargs="+", metavar="NAME", default=list(APPLICATIONS), help="(default: all)")
    add("--batch-size", metavar="N", type=positive_int, default=16, help="images (default: 16)")
    add("--seconds", metavar="S", type=positive_int, default=600, help="most for one network (default: 600)")
    return parser


def try_applications(flags: argparse.Namespace) -> None:
    """Prints and writes the table; exits with an error if a network fails or its evaluation differs from Keras'."""
    check_writable(flags.output)
    for split in ("train", "validation"):
        ShardSet.open(flags.directory, split)
    rows: list[tuple[str, ...]] = []
    failed = []
    for name in flags.networks:
        row = _in_process(name, flags.directory, flags.batch_size, flags.seconds)
        failed += [name] if len(row) < len(COLUMNS) else []
        rows.append((*row, *[""] * (len(COLUMNS) - len(row))))
        print("  ".join(row), flush=True)
        write_atomic(flags.output, _page(rows, flags).encode())
    print(table(COLUMNS, rows))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def try_network(name: str, directory: Path, batch_size: int, folder: Path) -> dict[str, Any]:
    """Trains a network for one epoch, evaluates it, compares with Keras' `evaluate`, and exports it.

    Args:
        name: of the network in keras.applications.
        directory: folder of shards.
        batch_size: images.
        folder: where to write.

    Returns:
        The columns of the table, by name.

    Raises:
        RuntimeError: a command fails.
    """
    began, size = time.monotonic(), APPLICATIONS[name].least_size
    run, result = RunDirectory(folder / "run"), folder / "result.json"
    data = [f"--dataset-dir={directory}", "--loader=tfdata", f"--batch-size={batch_size}"]
    flags = [f"--image-size={size}", "--epochs=1", "--iter-size=1", "--optimizer=sgd", "--initial-lr=0.001"]
    _do(train.main, [PREFIX + name, *data, *flags, f"--output={run.path}"])
    _do(export.main, [str(run.path), f"--output={folder / 'exported'}"])
    images, labels = _validation(directory, Recipe.load(run.recipe), batch_size)
    parameters = _spread_logits(run.final, images)
    _do(evaluate.main, [str(run.path), *data, f"--json={result}"])
    loss, top1 = evaluate_with_keras(name, run.final, images, labels, batch_size)
    found = json.loads(result.read_text())
    about = json.loads((folder / "exported" / "export.json").read_text())
    cells = (name, APPLICATIONS[name].input_range, size, parameters, found["loss"], loss, found["top1"], top1)
    return dict(zip(COLUMNS, (*cells, about["largest_difference"], time.monotonic() - began), strict=True))


def evaluate_with_keras(
    name: str, file: Path, images: np.ndarray, labels: np.ndarray, batch_size: int
) -> tuple[float, float]:
    """Evaluates the weights of a run's file in Keras' own network, after Keras' own preprocessing of the pixels.

    Args:
        name: of the network.
        file: final.keras of the run.
        images: float32 [N, S, S, 3] in -1 to 1.
        labels: int [N].
        batch_size: images.

    Returns:
        The loss and the accuracy of Keras' `evaluate`.
    """
    import keras

    constructor = getattr(keras.applications, name)
    saved = keras.models.load_model(file)
    pixels = keras.Input(images.shape[1:])
    base = constructor(include_top=False, weights=None, input_shape=images.shape[1:])
    pooled = keras.layers.GlobalAveragePooling2D()(base(pixels))
    model = keras.Model(pixels, keras.layers.Dense(saved.output_shape[-1], "softmax")(pooled))
    model.set_weights(saved.get_weights())
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    prepare = import_module(constructor.__module__).preprocess_input
    loss, accuracy = model.evaluate(prepare((images + 1) * 127.5), labels, batch_size=batch_size, verbose=0)
    return float(loss), float(accuracy)


def _do(command: Callable[[list[str]], int], arguments: list[str]) -> None:
    if code := command(arguments):
        raise RuntimeError(f"{command.__module__} ended with code {code}")


def _validation(directory: Path, recipe: Recipe, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """All validation images in -1 to 1, as the recipe's evaluation cuts them, and their labels."""
    images, labels = [], []
    shards, augment = ShardSet.open(directory, "validation"), AugmentSpec.evaluation(recipe.crop_ratio)
    with open_loader("tfdata", shards, BatchSpec(batch_size, recipe.image_size), augment) as loader:
        for batch, numbers, weights in loader.epoch(0):
            kept = np.asarray(weights) > 0
            images.append(np.asarray(batch)[kept])
            labels.append(np.asarray(numbers)[kept])
    return np.concatenate(images), np.concatenate(labels)


def _spread_logits(file: Path, images: np.ndarray) -> int:
    """Lets the probabilities of a model depend on the image; returns its parameters.

    Those of a network with random weights are almost equal, so a loss would say nothing about the input. Every
    BatchNormalization gets the statistics of the images, then the last layer is scaled.
    """
    import keras

    model = keras.models.load_model(file)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    last = model.get_layer("Logits")
    kernel, _ = last.get_weights()
    logits = np.asarray(keras.Model(model.inputs[0], last.input).predict(images, verbose=0), np.float64) @ kernel
    scale = 1 / logits.std(axis=0).mean()
    last.set_weights([kernel * scale, -logits.mean(axis=0) * scale])
    model.save(file)
    return model.count_params()


def _in_process(name: str, directory: Path, batch_size: int, seconds: int) -> tuple[str, ...]:
    """The row of a network, tried in a separate process; shorter if it failed."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_try_and_send, args=(name, directory, batch_size, sender))
    process.start()
    sender.close()
    try:
        answer = receiver.recv() if receiver.poll(seconds) else f"not done in {seconds} s"
    except EOFError:
        answer = "its process ended"
    finally:
        process.kill()
        process.join()
    if isinstance(answer, str):
        return (name, answer)
    loss, keras_loss = answer["loss"], answer["Keras' loss"]
    if not abs(loss - keras_loss) <= MAX_DIFFERENCE * abs(keras_loss):
        return (name, f"loss {loss:.6f}, Keras' {keras_loss:.6f}")
    formats = ("{}", "{}", "{}", "{:,}", "{:.5f}", "{:.5f}", "{:.2%}", "{:.2%}", "{:.0e}", "{:.0f}")
    return tuple(form.format(answer[column]) for form, column in zip(formats, COLUMNS, strict=True))


def _try_and_send(name: str, directory: Path, batch_size: int, sender: Any) -> None:
    import_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        try:
            sender.send(try_network(name, directory, batch_size, Path(folder)))
        except Exception as error:  # any: it becomes a line of the table
            sender.send(f"{type(error).__name__}: {error}".splitlines()[0])


def _page(rows: Sequence[Sequence[str]], flags: argparse.Namespace) -> str:
    import importlib.metadata

    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    cells = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "keras"))
    return f"""# Every network of keras.applications

`python -m tools.try_applications {flags.directory.name} --output {flags.output.name}` on {time.strftime("%Y-%m-%d")},
{platform.machine()}, {os.cpu_count()} CPUs, {versions}.

Each network has random weights. It is trained for one epoch by `kimagenet.train {PREFIX}NAME`, and exported as a
SavedModel, which is compared with the Keras model ("export": the largest difference of a probability). Then it gets
batch statistics and a scaled last layer, so that its probabilities depend on the image, and is evaluated by
`kimagenet.evaluate`.

"Keras' loss" and "Keras' top-1" are from `model.evaluate` of the network that Keras makes, with the same weights, on
the same images after Keras' `preprocess_input`. So they are equal only if kimagenet gives the network the range that
it "takes": tf is -1 to 1, torch and caffe subtract ImageNet's mean.

{cells}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run(make_parser(), try_applications, arguments)


if __name__ == "__main__":
    sys.exit(main())
