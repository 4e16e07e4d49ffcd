"""Prints the models, or one model's layers: python -m kimagenet.models [NAME]"""

import argparse
import sys
from collections.abc import Sequence

from kimagenet import cli, models
from kimagenet.catalog import layers_table, models_table

DESCRIPTION = """The models at 1000 classes: parameters (batch statistics included), multiply-adds of one image
(FLOPs are twice as many), input size, recipes, the top-1 accuracy of keras_imagenet and a published one. No figure was
re-run here; `python -m kimagenet.train --list-recipes` names the sources. With NAME: that model's layers, as
the papers' tables list them."""


def make_parser() -> cli.Parser:
    """The flags."""
    parser = cli.Parser("python -m kimagenet.models", "[NAME]", DESCRIPTION)
    parser.add_argument("name", metavar="NAME", nargs="?", choices=models.names(), help="one of the models")
    return parser


def show(flags: argparse.Namespace) -> None:
    """Builds every model and prints the table, or builds one and prints its layers."""
    cli.import_tensorflow()
    print(layers_table(flags.name) if flags.name else models_table())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), show, arguments)


if __name__ == "__main__":
    sys.exit(main())
