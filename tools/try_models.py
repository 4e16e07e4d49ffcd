"""Trains every model for a few steps with each loader, and opens its file in a process without kimagenet."""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from kimagenet import models
from kimagenet.catalog import table
from kimagenet.cli import Parser, import_tensorflow, positive_int, run
from kimagenet.json_output import check_writable
from pipelines import AugmentSpec, BatchSpec, ShardSet
from pipelines.system.files import write_atomic

MAX_DIFFERENCE = 1e-6  # of a probability

OPEN = """
import pathlib, sys
import keras, numpy as np
for path in map(pathlib.Path, sys.argv[1:]):
    images, expected = np.load(path.with_suffix(".npz")).values()
    print(path.stem, np.abs(np.asarray(keras.models.load_model(path)(images, training=False)) - expected).max())
assert not any(name.split(".")[0] in ("kimagenet", "pipelines") for name in sys.modules)
"""


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("python -m tools.try_models", "DIR --output FILE.md [flags]", __doc__ or "")
    add = parser.add_argument
    add("directory", metavar="DIR", type=Path, help="folder of shards")
    add("--output", metavar="FILE.md", type=Path, required=True, help="Markdown file for the table")
    add("--models", nargs="+", metavar="NAME", default=list(models.names()), help="(default: all)")
    add("--loaders", nargs="+", metavar="NAME", default=["dali", "tfdata"], help="(default: dali, tfdata)")
    add("--image-size", metavar="PIXELS", type=positive_int, default=96, help="of a side (default: 96)")
    add("--batch-size", metavar="N", type=positive_int, default=16, help="images (default: 16)")
    add("--batches", metavar="N", type=positive_int, default=4, help="batches in a pass (default: 4)")
    add("--passes", metavar="N", type=positive_int, default=4, help="passes over the batches (default: 4)")
    return parser


def try_models(flags: argparse.Namespace) -> None:
    """Prints and writes the table; exits with an error if a loss does not fall or a file gives other predictions."""
    check_writable(flags.output)
    shards = ShardSet.open(flags.directory, "train")
    import_tensorflow()
    from kimagenet.training.feed import open_feed
    from kimagenet.training.strategy import choose_strategy

    batch = BatchSpec(flags.batch_size, flags.image_size)
    columns = ("model", *(f"{loader}: first pass → last" for loader in flags.loaders), "file against model", "seconds")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        feeds = {
            name: stack.enter_context(
                open_feed(choose_strategy(), name, shards, batch, AugmentSpec.named("full"), strict=True)
            )
            for name in flags.loaders
        }
        losses: dict[str, list[list[float]]] = {}
        seconds: dict[str, float] = {}
        for name in flags.models:
            start = time.perf_counter()
            losses[name] = _train(name, list(feeds.values()), flags, folder)
            seconds[name] = time.perf_counter() - start
            shown = ", ".join(f"{passes[0]:.3f} → {passes[-1]:.3f}" for passes in losses[name])
            print(f"{name}: {shown} in {seconds[name]:.0f} s", flush=True)
        differences = _open_again([folder / f"{name}.keras" for name in flags.models])
    rows = [
        (
            name,
            *(f"{passes[0]:.3f} → {passes[-1]:.3f}" for passes in losses[name]),
            f"{differences[name]:.1e}",
            f"{seconds[name]:.0f}",
        )
        for name in flags.models
    ]
    write_atomic(flags.output, _page(columns, rows, flags, shards).encode())
    print(table(columns, rows))
    idle = [name for name in flags.models if not all(passes[-1] < passes[0] for passes in losses[name])]
    others = [name for name in flags.models if not differences[name] <= MAX_DIFFERENCE]
    if idle or others:
        sys.exit(f"loss does not fall: {idle or 'none'}; predictions differ: {others or 'none'}")


def _train(name: str, feeds: Sequence[Any], flags: argparse.Namespace, folder: Path) -> list[list[float]]:
    """Trains a model on each feed from the same start, saves the last one, returns the mean loss of [feed][pass]."""
    import keras
    import tensorflow as tf

    from kimagenet.runs.directory import save_model
    from kimagenet.training.steps import make_training_step, to_input

    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    model = models.build(name, feeds[0].shards.num_classes, flags.image_size)
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    step = make_training_step(model, optimizer, feeds[0].strategy, flags.batch_size)
    variables = [*model.variables, *optimizer.variables]
    start = [variable.numpy() for variable in variables]
    losses: list[list[float]] = []
    images = None
    for feed in feeds:
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        passes = []
        for _ in range(flags.passes):
            batches = feed.epoch(0)
            found = []
            for _ in range(flags.batches):
                images, labels = next(batches)[:2]
                found.append(float(step(images, labels)[0]))
            passes.append(float(np.mean(found)))
        losses.append(passes)
    images = np.asarray(to_input(tf.convert_to_tensor(images)))
    save_model(model, folder / f"{name}.keras")
    np.savez(folder / f"{name}.npz", images=images, predictions=np.asarray(model(images, training=False)))
    return losses


def _open_again(paths: Sequence[Path]) -> dict[str, float]:
    """Opens the files in another process; returns the largest difference of a probability for each."""
    done = subprocess.run([sys.executable, "-c", OPEN, *map(str, paths)], cwd=paths[0].parent, capture_output=True)
    if done.returncode:
        sys.exit(done.stderr.decode())
    return {name: float(value) for name, value in (line.split() for line in done.stdout.decode().splitlines())}


def _page(columns: Sequence[str], rows: Sequence[Sequence[str]], flags: argparse.Namespace, shards: ShardSet) -> str:
    import keras
    import tensorflow as tf

    lines = [columns, ["---"] * len(columns), *rows]
    cells = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    images = flags.batches * flags.batch_size
    return f"""# Every model, trained for {flags.passes * flags.batches} steps with each loader

`python -m tools.try_models {flags.directory.name} --output {flags.output.name} --batches {flags.batches} --passes
{flags.passes} --batch-size {flags.batch_size} --image-size {flags.image_size}` on {time.strftime("%Y-%m-%d")},
{platform.machine()}, {os.cpu_count()} CPUs, TensorFlow {tf.__version__}, Keras {keras.__version__}.

{len(shards.usable):,} training images of {shards.num_classes} classes, {flags.image_size} pixels, augmentation full,
Adam at 1e-3: {flags.passes} passes over the same {images} images, batches of {flags.batch_size}. The loss is the mean
cross-entropy of a pass; every loader starts with the same weights. "file against model" is the largest difference of a
probability in the last batch (at most {MAX_DIFFERENCE:g}) when a process without kimagenet opens the saved file.

{cells}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run(make_parser(), try_models, arguments)


if __name__ == "__main__":
    sys.exit(main())
