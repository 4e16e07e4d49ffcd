"""Builds TFRecord shards, DALI indexes and dataset.json from folders, lists, tars or Parquet files of images."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from kimagenet import cli
from pipelines.building.build import (
    REJECTED_FILE,
    BuildReport,
    build,
    check_output,
    finish,
    scratch_folder,
    unfinished_plan,
)
from pipelines.building.holdout import hold_out
from pipelines.building.options import (
    FEWEST_SHARDS,
    MIN_RECORDS_PER_SHARD,
    MOST_SHARDS,
    SHARD_BYTES,
    BuildOptions,
    as_planned,
    decide,
    samples_of,
)
from pipelines.building.sample import Sample
from pipelines.building.sources import Layout, Scratch, Source, recognize
from pipelines.errors import one_line
from pipelines.shards import remedies
from pipelines.shards.advice import better_short_side
from pipelines.system.files import bytes_text
from pipelines.system.lock import owned
from pipelines.system.progress import ProgressBar

EXIT_REJECTED = 1
_SHOWN = 8  # names of files in one line
_USUAL_SIZE = 224  # px, of images in a training on ImageNet
EPILOG = f"""Every image is decoded to its last block. JPEGs of one or three components are stored unchanged; PNG,
CMYK, WebP, BMP, GIF, TIFF and images with an EXIF orientation become upright RGB JPEGs. Files that cannot be decoded
are left out and listed with the reason in OUTPUT/{REJECTED_FILE}. To continue a stopped build, repeat its command.
Exit codes: 0 done, 1 done but more files were rejected than --max-rejected allows, 2 wrong use or not done, 130
interrupted."""


def make_parser() -> cli.Parser:
    """The parser of this command."""
    default = BuildOptions()
    parser = cli.Parser(remedies.program("build_shards"), "--source PATH --output DIR [flags]", __doc__, EPILOG)
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder with train/<class>/* and optionally validation/<class>/* (or val, valid, test), with <class>/*, "
        "ImageNet's official tars, Kaggle's or Hugging Face's files, Parquet, WebDataset tars or shards, or a list of "
        "images (.csv, .tsv or .jsonl with path and label); compressed tars and Parquet are unpacked beside the shards "
        "for the time of the build",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new folder for the shards")
    shards = parser.add_argument_group("shards")
    least = f"fewer if a shard would have less than {MIN_RECORDS_PER_SHARD} images"
    for split, most in MOST_SHARDS.items():
        usual = f"default: {FEWEST_SHARDS} to {most:,}, about {bytes_text(SHARD_BYTES)} each"
        shards.add_argument(
            f"--{split}-shards", type=int, metavar="N", help=f"number of {split} shards; {least} ({usual})"
        )
    shards.add_argument(
        "--seed", type=int, default=default.seed, metavar="N", help="seed of the shuffle (default: %(default)s)"
    )
    images = parser.add_argument_group("images")
    images.add_argument(
        "--validation-share",
        type=float,
        default=default.validation_share,
        metavar="X",
        help="take this share of each class from train for validation, by a hash of the file (default: 0, none)",
    )
    images.add_argument(
        "--short-side",
        type=int,
        metavar="PIXELS",
        help="shrink larger images to this shorter side, with chroma 4:2:0 (default: keep their size)",
    )
    images.add_argument(
        "--quality",
        type=int,
        default=default.quality,
        metavar="Q",
        help="JPEG quality of images that are encoded again, 1 to 100 (default: %(default)s)",
    )
    images.add_argument(
        "--max-rejected",
        type=int,
        default=0,
        metavar="N",
        help="exit with 0 if at most this many files were rejected (default: %(default)s)",
    )
    cli.add_processes(parser)
    return parser


def build_shards(flags: argparse.Namespace) -> None:
    """Builds a data set and prints what was built. Exits with 1 if too many files were rejected."""
    options = BuildOptions(
        flags.train_shards,
        flags.validation_shards,
        flags.short_side,
        flags.quality,
        flags.seed,
        flags.validation_share,
    )
    layout = recognize(flags.source)
    print(f"{layout.root}: {layout.text}", flush=True)
    if layout.unused:
        print(f"{layout.root}: not used: {_unused(layout.unused)}", flush=True)
    with owned(flags.output.absolute(), "output"):  # the source may be unpacked there before the build
        report = _build(flags, options, layout)
    _print_report(flags, report)


def _build(flags: argparse.Namespace, options: BuildOptions, layout: Layout) -> BuildReport:
    output = flags.output
    if report := finish(output, layout.root, options, layout.packed if layout.is_packed else None):
        return report
    check_output(output)
    with closing(ProgressBar("MB")) as progress:
        source = layout.read(Scratch(scratch_folder(output), flags.workers, progress))
    if options.validation_share:
        with closing(ProgressBar()) as progress:
            source = hold_out(source, options.validation_share, progress)
    print(f"{len(source.classes)} classes, {_counts(source)}", flush=True)
    samples = samples_of(source, options)
    decided = decide(as_planned(options, unfinished_plan(output)), source, samples)
    print(_shards(source, options, decided, samples), flush=True)
    if note := _large_pictures(samples["train"]):
        print(note, flush=True)
    with closing(ProgressBar()) as progress:
        return build(source, flags.output, decided, flags.workers, progress)


def _print_report(flags: argparse.Namespace, report: BuildReport) -> None:
    """Prints the result. Exits with 1 if too many files were rejected."""
    print(_summary(flags.output, report))
    if report.rejected:
        first = report.rejected[0]
        print(
            f"{len(report.rejected):,} files were rejected and are listed in {flags.output / REJECTED_FILE}; "
            f"the first is {one_line(f'{first.path}: {first.reason}')}",
            file=sys.stderr,
        )
    if len(report.rejected) > flags.max_rejected:
        raise SystemExit(EXIT_REJECTED)


def _unused(names: Sequence[str]) -> str:
    """All folders that are not used, and some of the files."""
    files = [name for name in names if not name.endswith("/")]
    left_out = set(files[_SHOWN:])
    more = f" and {len(left_out):,} more files" if left_out else ""
    return one_line(", ".join(name for name in names if name not in left_out)) + more


def _counts(source: Source) -> str:
    """The number of images in each split, for people."""
    return ", ".join(f"{len(entries):,} {split}" for split, entries in source.splits.items())


def _shards(source: Source, given: BuildOptions, decided: BuildOptions, samples: Mapping[str, Sample | None]) -> str:
    """One line about the shards that will be made."""
    parts = []
    for split, entries in source.splits.items():
        count, wanted, sample = decided.num_shards(split, len(entries)), given.wanted(split), samples[split]
        part = f"{count:,} {split} {'shard' if count == 1 else 'shards'}"
        if sample:
            part += f" of about {bytes_text(len(entries) * sample.image_bytes / count)}"
        if wanted and count < wanted:
            part += f" (not {wanted:,}: a shard has at least {MIN_RECORDS_PER_SHARD} images)"
        parts.append(part)
    return ", ".join(parts)


def _large_pictures(sample: Sample | None) -> str:
    """One line if the pictures are far larger than a usual training needs, else ""."""
    if sample is None or not (better := better_short_side(sample.short_side, _USUAL_SIZE)):
        return ""
    what = f"most pictures are far larger than training at {_USUAL_SIZE} px needs (their median shorter side has"
    return f"{what} {sample.short_side:,.0f} px) and slow to decode; `--short-side {better}` stores smaller ones"


def _summary(output: Path, report: BuildReport) -> str:
    """One line about what was built."""
    parts = [
        f"{part.num_records:,} {split} records in {len(part.shards)} {'shard' if len(part.shards) == 1 else 'shards'}"
        for split, part in report.info.splits.items()
    ]
    if report.reencoded:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in report.reencoded.items())
        parts.append(f"encoded again: {reasons}")
    return f"{output}: {'; '.join(parts)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), build_shards, arguments)


if __name__ == "__main__":
    sys.exit(main())
