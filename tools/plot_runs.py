"""Draws the curves of runs, from their log.jsonl: validation top-1 above, training loss below. Needs matplotlib."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kimagenet.cli import Parser, run
from kimagenet.recipe import Recipe
from kimagenet.run import RunDirectory
from pipelines import UserError
from pipelines.files import atomic_writer

# Okabe and Ito's colours, which the colour-blind tell apart; the dashes do as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":")


def build_parser() -> Parser:
    """The flags of `python -m tools.plot_runs`."""
    parser = Parser("python -m tools.plot_runs", "RUN… --output PNG [--names NAME…]", __doc__ or "")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run directories")
    parser.add_argument("--output", metavar="PNG", type=Path, required=True, help="picture to write")
    parser.add_argument("--names", metavar="NAME", nargs="+", help="one for each run; default: the folders' names")
    parser.add_argument("--title", metavar="TEXT", default="", help="above the picture")
    return parser


def main(flags: argparse.Namespace) -> None:
    """Draws the picture and prints the last validation top-1 of each run."""
    names = flags.names or [path.name for path in flags.runs]
    if len(names) != len(flags.runs):
        raise UserError(f"{len(names)} --names for {len(flags.runs)} runs")
    curves = {name: epochs_of(RunDirectory.existing(path)) for name, path in zip(names, flags.runs, strict=True)}
    figure = draw(curves, flags.title)
    with atomic_writer(flags.output) as stream:
        figure.savefig(stream, format="png", dpi=110)
    for name, path in zip(names, flags.runs, strict=True):
        last = curves[name][-1]
        epochs = Recipe.load(RunDirectory(path).recipe).epochs
        print(f"{name}: validation top-1 {last['val_top1']:.2%} after {len(curves[name])} of {epochs} epochs")
    print(flags.output)


def epochs_of(directory: RunDirectory) -> list[dict[str, Any]]:
    """The log's epoch lines; raises `UserError` if there is none with a validation."""
    try:
        lines = [json.loads(line) for line in directory.log.read_text(encoding="utf-8").splitlines()]
        epochs = [line for line in lines if line["event"] == "epoch" and "val_top1" in line]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{directory.log}: not the log of a run") from None
    if not epochs:
        raise UserError(f"{directory.log}: no epoch with a validation yet")
    return epochs


def draw(curves: dict[str, list[dict[str, Any]]], title: str = "") -> Any:
    """The figure: a curve for each run in both fields."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for number, (name, epochs) in enumerate(curves.items()):
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
        at = range(1, len(epochs) + 1)
        above.plot(at, [100 * epoch["val_top1"] for epoch in epochs], label=name, **style)
        below.plot(at, [epoch["loss"] for epoch in epochs], label=name, **style)
    above.set(ylabel="validation top-1, %", title=title)
    below.set(ylabel="training loss (with what the recipe adds)", xlabel="epoch")
    above.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    sys.exit(run(build_parser(), main))
