"""Writes a data set of shards as WebDataset tars or Parquet, so that other projects can use it."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from kimagenet import cli
from pipelines.building.export import FORMATS, export_shards
from pipelines.shards import remedies
from pipelines.system.progress import ProgressBar

EPILOG = """Images stay byte for byte, labels count from 0, quarantined records are left out. `build_shards` reads the
result, and gives the same records. Exit codes: 0 done, 2 wrong use or not done, 130 interrupted."""


def make_parser() -> cli.Parser:
    """The parser of this command."""
    program = remedies.program("export_shards")
    parser = cli.Parser(program, "DIR --output DIR --format FORMAT [flags]", __doc__ or "", EPILOG)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of shards")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder for the files")
    parser.add_argument("--format", choices=FORMATS, required=True, help="what is written: one file for each shard")
    cli.add_processes(parser)
    return parser


def run_export(flags: argparse.Namespace) -> None:
    """Exports a folder and prints what was written."""
    with closing(ProgressBar()) as progress:
        done = export_shards(flags.directory, flags.output, flags.format, flags.workers, progress)
    counts = ", ".join(f"{count:,} {split} records" for split, count in done.records.items())
    quarantined = sum(done.left_out.values())
    more = f"; {quarantined:,} quarantined records are left out" if quarantined else ""
    print(f"{flags.output}: {counts} in {done.files:,} {'file' if done.files == 1 else 'files'}{more}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), run_export, arguments)


if __name__ == "__main__":
    sys.exit(main())
