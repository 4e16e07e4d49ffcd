"""Prints the models, or one model's layers: python -m kimagenet.models [NAME]"""

import argparse
import sys
from collections.abc import Sequence

from kimagenet import cli, models
from kimagenet.catalog import layers_table, models_table

DESCRIPTION = """Prints a table of the models at 1000 classes: parameters (with batch statistics), multiply-adds of one
image (FLOPs are twice as many), input size, recipes, the top-1 accuracy that keras_imagenet reports and a published
one. The accuracies were not measured here; `python -m kimagenet.train --list-recipes` names their sources. With NAME,
prints the layers of that model, as in the tables of papers."""


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
