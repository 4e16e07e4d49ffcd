"""Makes what loaders need for shards that exist: a DALI index for each, image sizes and dataset.json."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from kimagenet import cli
from pipelines.building.adopt import adopt_shards
from pipelines.shards import remedies
from pipelines.system.progress import ProgressBar

EPILOG = """Shards of the original project, of tf-models and of tensorflow-datasets are used where they are: nothing is
written into them. No pixels are read, only the start of each record. Images that are no JPEG, and JPEGs that EXIF
turns, are counted: no loader turns them.
Exit codes: 0 done, 2 wrong use or a damaged shard, 130 interrupted."""


def make_parser() -> cli.Parser:
    """The parser of this command."""
    parser = cli.Parser(remedies.program("build_index"), "DIR [flags]", __doc__, EPILOG)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of shards, such as train-00000-of-01024")
    parser.add_argument(
        "--label-base",
        type=int,
        choices=(0, 1),
        help="label of the first class (default: as in dataset.json; without one 0 if a record has label 0, else 1)",
    )
    parser.add_argument(
        "--quarantine",
        action="store_true",
        help="list records that are no JPEG, or that EXIF turns, in dataset.json, so that no loader reads them "
        "(default: only count them)",
    )
    parser.add_argument(
        "--checksums",
        action="store_true",
        help="compute the checksum of each shard again, which reads all bytes (default: keep those of dataset.json)",
    )
    cli.add_processes(parser)
    return parser


def build_index(flags: argparse.Namespace) -> None:
    """Indexes a folder and prints what is in it."""
    with closing(ProgressBar("shards")) as progress:
        info = adopt_shards(
            flags.directory,
            flags.label_base,
            flags.workers,
            progress,
            only_plain=flags.quarantine,
            checksums=flags.checksums,
        )
    parts = [
        f"{part.num_records:,} {split} records in {len(part.shards)} {'shard' if len(part.shards) == 1 else 'shards'}"
        for split, part in info.splits.items()
    ]
    classes = f"{info.num_classes} {'class' if info.num_classes == 1 else 'classes'}, first label {info.label_base}"
    print(f"{flags.directory}: {'; '.join(parts)}; {classes}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), build_index, arguments)


if __name__ == "__main__":
    sys.exit(main())
