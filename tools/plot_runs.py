"""Draws validation top-1 and training loss of runs from their log.jsonl. Needs matplotlib.

Runs with the same name, for example with different seeds, make one curve: their mean, with a band from minimum to
maximum.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kimagenet.cli import Parser, run
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines import UserError
from pipelines.system.files import atomic_writer

# Okabe and Ito's colours, which colour-blind people can distinguish; each curve also has different dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Curves:
    """The results of one or more runs at the end of each epoch.

    Attributes:
        epochs: the epochs of the recipe.
        updates: float64 [points], updates of the weights so far, in the first run.
        top1: float64 [runs, points], validation top-1, 0 to 1.
        loss: float64 [runs, points], training loss.
    """

    epochs: int
    updates: NDArray[np.float64]
    top1: NDArray[np.float64]
    loss: NDArray[np.float64]

    @classmethod
    def read(cls, name: str, directories: Sequence[RunDirectory]) -> "Curves":
        """Reads the logs of runs.

        Args:
            name: the name of the curve, for messages.
            directories: the runs.

        Raises:
            UserError: a run has no validation yet, or the runs differ in the number of epochs.
        """
        logs = [epochs_of(directory) for directory in directories]
        if len({len(log) for log in logs}) > 1:
            raise UserError(
                f"the runs named {name} have different numbers of epochs: {', '.join(str(len(log)) for log in logs)}",
                remedy="give them different names",
                setting="names",
            )
        recipe = Recipe.load(directories[0].recipe)
        updates = np.array([epoch["global_step"] / recipe.iter_size for epoch in logs[0]])
        top1, loss = (np.array([[epoch[key] for epoch in log] for log in logs]) for key in ("val_top1", "loss"))
        return cls(recipe.epochs, updates, top1, loss)

    def line(self, name: str) -> str:
        """The last validation result as a line of text."""
        last = self.top1[:, -1]
        spread = (
            f" ({float(np.min(last)):.2%} to {float(np.max(last)):.2%} in {len(last)} runs)" if len(last) > 1 else ""
        )
        done = f"{len(self.updates)} of {self.epochs} epochs"
        return f"{name}: validation top-1 {last.mean():.2%}{spread} after {done}"


def make_parser() -> Parser:
    """The flags."""
    parser = Parser("python -m tools.plot_runs", "RUN… --output PNG [--names NAME…]", __doc__ or "")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run directories")
    parser.add_argument("--output", metavar="PNG", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--names", metavar="NAME", nargs="+", help="a name for each run (default: the folders' names)")
    parser.add_argument("--updates", action="store_true", help="draw over updates of the weights instead of epochs")
    parser.add_argument("--title", metavar="TEXT", default="", help="title of the picture")
    return parser


def plot_runs(flags: argparse.Namespace) -> None:
    """Draws the picture and prints the last validation top-1 of each name.

    Raises:
        UserError: a run cannot be drawn, or matplotlib is not installed.
    """
    names = flags.names or [path.name for path in flags.runs]
    if len(names) != len(flags.runs):
        raise UserError(
            f"{len(names)} names for {len(flags.runs)} runs", remedy="give one name for each run", setting="names"
        )
    groups: dict[str, list[RunDirectory]] = {}
    for name, path in zip(names, flags.runs, strict=True):
        groups.setdefault(name, []).append(RunDirectory.existing(path))
    curves = {name: Curves.read(name, directories) for name, directories in groups.items()}
    figure = draw(curves, flags.title, flags.updates)
    with atomic_writer(flags.output) as stream:
        figure.savefig(stream, format="png", dpi=110)
    for name, curve in curves.items():
        print(curve.line(name))
    print(flags.output)


def epochs_of(directory: RunDirectory) -> list[dict[str, Any]]:
    """Reads the epochs of a run from its log.

    Args:
        directory: the run.

    Returns:
        The log's epoch lines that have a validation.

    Raises:
        UserError: the log cannot be understood, or has no epoch with a validation.
    """
    try:
        lines = [json.loads(line) for line in directory.log.read_text(encoding="utf-8").splitlines()]
        epochs = [line for line in lines if line["event"] == "epoch" and "val_top1" in line]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError("not the log of a run", path=directory.log) from None
    if not epochs:
        raise UserError("no epoch with a validation yet", path=directory.log)
    return epochs


def draw(curves: dict[str, Curves], title: str = "", by_updates: bool = False) -> Any:
    """Draws a curve of top-1 and one of the loss for each name.

    Args:
        curves: by name.
        title: the title of the figure.
        by_updates: whether the x axis shows updates of the weights instead of epochs.

    Returns:
        The matplotlib figure.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("drawing needs the package matplotlib", remedy="`pip install matplotlib`") from None
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        at = curve.updates if by_updates else np.arange(1, len(curve.updates) + 1)
        for axes, values in ((above, 100 * curve.top1), (below, curve.loss)):
            axes.plot(at, values.mean(axis=0), label=name, color=colour, linestyle=DASHES[number % len(DASHES)])
            if len(values) > 1:
                axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    above.set(ylabel="validation top-1, %", title=title)
    below.set(ylabel="training loss (with regularization)", xlabel="updates of the weights" if by_updates else "epoch")
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(curves)))
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run(make_parser(), plot_runs, arguments)


if __name__ == "__main__":
    sys.exit(main())
