"""Checks every record of a folder of shards, and the files beside them."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from kimagenet import cli
from pipelines.building.check import CheckReport, check_shards, quarantine
from pipelines.errors import UserError
from pipelines.shards import remedies
from pipelines.shards.advice import shard_size_problem
from pipelines.system.progress import ProgressBar

EPILOG = """It checks the length and data CRC of each record, features, label, image (decoded to its last block), index,
image sizes, dataset.json and its checksums. Each fault is one line. Shards of the original project and of other writers
need no dataset.json and no features except image and label. A record is also faulty if the builder would not store its
image unchanged (except for an EXIF orientation, which no loader applies). Exit codes: 0 no fault, 1 faults (not
counting records that are already quarantined), 2 wrong use, 130 interrupted."""


def make_parser() -> cli.Parser:
    """The parser of this command."""
    parser = cli.Parser(remedies.program("check_shards"), "DIR [flags]", __doc__ or "", EPILOG)
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of shards")
    parser.add_argument(
        "--quarantine",
        action="store_true",
        help="list the faulty records in dataset.json (made if it is missing), so that no loader reads them",
    )
    parser.add_argument("--fast", action="store_true", help="do not decode images; check everything else")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the faults as JSON")
    cli.add_processes(parser)
    return parser


def run_check(flags: argparse.Namespace) -> int:
    """Checks the shards and prints the faults. Returns the exit code."""
    if flags.json and not flags.json.absolute().parent.is_dir():
        raise UserError("its folder does not exist", path=flags.json, remedy="create the folder first")
    with closing(ProgressBar()) as progress:
        report = check_shards(flags.directory, not flags.fast, flags.workers, progress)
    for fault in report.faults:
        print(fault.line(flags.directory))
    if flags.json:
        report.save(flags.json)
    print(_summary(flags.directory, report))
    for split, part in report.info.splits.items() if report.info else ():
        if problem := shard_size_problem(part):
            print(f"{flags.directory}: {split}: {problem}; a new build chooses a better number")
    if flags.quarantine and report.damaged:
        info = quarantine(report, flags.workers)
        parts = [f"{len(part.quarantine):,} of {split}" for split, part in info.splits.items() if part.quarantine]
        print(f"{flags.directory}: quarantined records: {', '.join(parts)}")
    return cli.EXIT_FAILED if report.faults else 0


def _summary(directory: Path, report: CheckReport) -> str:
    """One line about the result."""
    counts = ", ".join(f"{count:,} {split} records" for split, count in report.records.items())
    records = sum(map(len, report.damaged.values()))
    others = sum(fault.record is None for fault in report.faults)
    parts = [f"{records:,} of them faulty"] if records else []
    parts += [f"{others:,} {'fault' if others == 1 else 'faults'} of files"] if others else []
    parts += [f"{report.quarantined:,} already quarantined"] if report.quarantined else []
    parts += [] if report.images_decoded else ["images not decoded"]
    return f"{directory}: {counts}: {', '.join(parts) or 'no fault'}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), run_check, arguments)


if __name__ == "__main__":
    sys.exit(main())
