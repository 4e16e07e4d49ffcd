"""Prints the models: python -m kimagenet.models"""

import argparse
import sys

from kimagenet import cli
from kimagenet.catalog import models_table

DESCRIPTION = """The models at 1000 classes: parameters (batch statistics included), multiply-adds of one image
(FLOPs are twice as many), input size, recipes, the top-1 accuracy of keras_imagenet and a published one. No figure was
re-run here; `python -m kimagenet.train --list-recipes` names the sources."""


def show(_: argparse.Namespace) -> None:
    """Builds every model and prints the table."""
    cli.import_tensorflow()
    print(models_table())


if __name__ == "__main__":
    sys.exit(cli.run(cli.Parser("python -m kimagenet.models", "[-h]", DESCRIPTION), show))
