"""Builds TFRecord shards, DALI indexes and dataset.json from tars or folders of images."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from kimagenet import cli
from pipelines.building.build import (
    MIN_RECORDS_PER_SHARD,
    REJECTED_FILE,
    BuildOptions,
    BuildReport,
    build,
    check_output,
    scratch_folder,
)
from pipelines.building.sources import Scratch, Source, recognize
from pipelines.system.processes import cpu_count
from pipelines.system.progress import ProgressBar

EXIT_REJECTED = 1
EPILOG = f"""Every image is decoded to its last block. JPEGs of one or three components are stored as they are; PNG,
CMYK, WebP, BMP, GIF, TIFF and images turned by EXIF become upright RGB JPEGs. What cannot be decoded is left out and
listed with its reason in OUTPUT/{REJECTED_FILE}. A build that was stopped goes on when its command is repeated.
Exit codes: 0 done, 1 done but more files were rejected than --max-rejected allows, 2 wrong use or not done, 130
interrupted."""


def make_parser() -> cli.Parser:
    """The flags."""
    default = BuildOptions()
    parser = cli.Parser("python -m tools.build_shards", "--source DIR --output DIR [flags]", __doc__, EPILOG)
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with ImageNet as it was published, by Kaggle or by Hugging Face (their tars are unpacked "
        "meanwhile, beside the shards), or with train/<class>/* and, if there is one, validation/<class>/*",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder for the shards")
    shards = parser.add_argument_group("shards")
    least = f"fewer if one would hold less than {MIN_RECORDS_PER_SHARD} images"
    shards.add_argument(
        "--train-shards", type=int, default=default.train_shards, metavar="N", help=f"%(default)s; {least}"
    )
    shards.add_argument(
        "--validation-shards", type=int, default=default.validation_shards, metavar="N", help="%(default)s; likewise"
    )
    shards.add_argument("--seed", type=int, default=default.seed, metavar="N", help="of the shuffle; %(default)s")
    images = parser.add_argument_group("images")
    images.add_argument(
        "--short-side",
        type=int,
        metavar="PIXELS",
        help="shrink larger images to this shorter side, with chroma 4:2:0; default: keep them",
    )
    images.add_argument(
        "--quality",
        type=int,
        default=default.quality,
        metavar="Q",
        help="JPEG quality, 1 to 100, of images that are encoded anew; %(default)s",
    )
    images.add_argument(
        "--max-rejected", type=int, default=0, metavar="N", help="rejected files that are no failure; %(default)s"
    )
    parser.add_argument(
        "--workers", type=cli.positive_int, default=cpu_count(), metavar="N", help="processes; default: one a core"
    )
    return parser


def build_shards(flags: argparse.Namespace) -> None:
    """Builds, and says what was built. Exits with 1 if too many files were rejected."""
    options = BuildOptions(flags.train_shards, flags.validation_shards, flags.short_side, flags.quality, flags.seed)
    layout = recognize(flags.source)
    print(f"{layout.root}: {layout.text}", flush=True)
    check_output(flags.output.expanduser())
    with closing(ProgressBar("MB")) as progress:
        source = layout.read(Scratch(scratch_folder(flags.output.expanduser()), flags.workers, progress))
    print(f"{len(source.classes)} classes, {_counts(source)}", flush=True)
    for split, entries in source.splits.items():
        wanted = {"train": flags.train_shards, "validation": flags.validation_shards}[split]
        if (count := options.num_shards(split, len(entries))) < wanted:
            least = f"so few images; a shard holds {MIN_RECORDS_PER_SHARD} or more"
            print(f"{split}: {count} shards, not {wanted}: {least}" if count > 1 else f"{split}: one shard: {least}")
    with closing(ProgressBar()) as progress:
        report = build(source, flags.output, options, flags.workers, progress)
    print(_summary(flags.output, report))
    if report.rejected:
        first = report.rejected[0]
        print(
            f"{len(report.rejected):,} files were rejected, listed in {flags.output / REJECTED_FILE}; "
            f"the first: {first.path}: {first.reason}",
            file=sys.stderr,
        )
    if len(report.rejected) > flags.max_rejected:
        raise SystemExit(EXIT_REJECTED)


def _counts(source: Source) -> str:
    return ", ".join(f"{len(entries):,} {split}" for split, entries in source.splits.items())


def _summary(output: Path, report: BuildReport) -> str:
    parts = [
        f"{part.num_records:,} {split} records in {len(part.shards)} shards"
        for split, part in report.info.splits.items()
    ]
    if report.reencoded:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in report.reencoded.items())
        parts.append(f"encoded anew: {reasons}")
    return f"{output}: {'; '.join(parts)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), build_shards, arguments)


if __name__ == "__main__":
    sys.exit(main())
