"""Measures the exact accuracy of a trained model: python -m kimagenet.evaluate RUN_OR_MODEL --dataset-dir DIR"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kimagenet import cli
from kimagenet.idle_flags import no_effect
from kimagenet.inference import class_folders, report, trained
from kimagenet.json_output import check_writable, write_json
from kimagenet.training.recovery import LIMIT, POLICIES, SkippedRecords
from pipelines import loaders
from pipelines.augment import AugmentSpec
from pipelines.errors import UserError
from pipelines.loader import DEVICES
from pipelines.shards.shard_set import ShardSet
from pipelines.shards.size_check import check_sizes

if TYPE_CHECKING:
    from kimagenet.inference.tally import Tally
    from pipelines.images import ImageFile

DESCRIPTION = """Measures top-1 and top-5 over every record of a split, each counted once, or over every file in class
folders. An image is right in top-k if fewer than k classes come before its own; of equally probable classes the lower
number comes first. Files that cannot be read are listed and counted, and the exit code is then 1. Corrupt records of
shards end the evaluation, or are listed, counted and left out with --on-corrupt skip."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), evaluate, arguments)


def make_parser() -> cli.Parser:
    """The flags."""
    parser = cli.Parser("python -m kimagenet.evaluate", "RUN_OR_MODEL [flags]", DESCRIPTION)
    trained.add_flags(parser)
    add = parser.add_argument_group("data").add_argument
    add("--dataset-dir", type=Path, metavar="DIR", help="folder of shards or of class folders; default: the run's")
    add("--split", default="validation", help="split of the shards, or folder in DIR; default: validation")
    text = "average the probabilities of each image and of its mirror image; default: the image alone"
    add("--flip", action="store_true", help=text)
    add = parser.add_argument_group("output").add_argument
    add("--per-class", action="store_true", help="show a table of all classes")
    add("--confusions", type=cli.positive_int, metavar="N", help="show the N most frequent confusions")
    add("--calibration", action="store_true", help="show the expected calibration error, with a table")
    add("--json", type=Path, metavar="FILE", help="also write the result, with the tables, to a file")
    reading = parser.add_argument_group("reading (no influence on the result)")
    add = reading.add_argument
    add("--loader", choices=("auto", *loaders.names()), default="auto", help="what reads shards; default: auto")
    add("--data-device", choices=DEVICES, default="auto", help="where DALI decodes (auto: a GPU if there is one)")
    cli.add_decoding_threads(reading)
    add("--batch-size", type=cli.positive_int, metavar="N", help="images in a batch; default: the run's")
    add = parser.add_argument_group("corrupt records of shards").add_argument
    add("--on-corrupt", choices=POLICIES, default=POLICIES[0], help="end (stop) or leave them out; default: stop")
    add("--max-corrupt", type=cli.positive_int, metavar="N", help=f"leave out at most N ({LIMIT})")
    return parser


def _idle(flags: argparse.Namespace) -> Iterator[str]:
    """A line for each flag without effect."""
    if flags.max_corrupt is not None and flags.on_corrupt != "skip":
        yield no_effect("max_corrupt", "--on-corrupt=skip")
    if flags.data_device != "auto" and flags.loader == "tfdata":
        yield no_effect("data_device", "--loader=dali")
    if flags.checkpoint != "final" and flags.target.is_file():
        yield no_effect("checkpoint", "a run directory")


def evaluate(flags: argparse.Namespace) -> int:
    """Prints the accuracy, and writes it to --json; returns the exit code.

    Raises:
        UserError: the model and the data do not fit together.
    """
    model = trained.chosen(flags)
    dataset_dir = flags.dataset_dir or model.dataset_dir
    if dataset_dir is None:
        what = "not in a run directory, so its data set is unknown"
        raise UserError(what, path=flags.target, remedy="add --dataset-dir DIR")
    if flags.dataset_dir is None and (run := trained.run_of(model.model)):
        run.check_dataset(dataset_dir)
    if flags.json:
        check_writable(flags.json)
    crop_ratio = model.crop_ratio if flags.crop_ratio is None else flags.crop_ratio
    for line in _idle(flags):
        print(line, file=sys.stderr)
    corrupt = SkippedRecords(flags.on_corrupt, LIMIT if flags.max_corrupt is None else flags.max_corrupt)
    tally, rejected = _measure(flags, model, dataset_dir, AugmentSpec.evaluation(crop_ratio), corrupt)
    for file, reason in rejected:
        print(f"{file.path}: {reason}", file=sys.stderr)
    what = "images in class folders" if class_folders.find(dataset_dir, flags.split) else f"{flags.split} records"
    flipped = ", each image and its mirror image averaged" if flags.flip else ""
    print(f"{model.model} on {tally.records:,} {what}, crop ratio {crop_ratio:g}{flipped}")
    asked = (flags.per_class, flags.confusions or 0, flags.calibration)
    print("\n".join(report.lines(tally, *asked)))
    if rejected:
        total = len(rejected) + tally.records
        print(f"{len(rejected):,} of {total:,} files could not be read; the figures leave them out", file=sys.stderr)
    if corrupt:
        total = len(corrupt) + tally.records
        print(f"{len(corrupt):,} of {total:,} records are corrupt; the figures leave them out", file=sys.stderr)
    if flags.json:
        measured = {"model": str(model.model), "dataset_dir": str(dataset_dir), "split": flags.split}
        measured |= {"crop_ratio": crop_ratio, "flip": flags.flip, "skipped": len(corrupt)}
        write_json(flags.json, report.content(measured, tally, rejected, *asked))
    return cli.EXIT_FAILED if rejected else 0


def _measure(
    flags: argparse.Namespace,
    model: trained.Trained,
    dataset_dir: Path,
    augment: AugmentSpec,
    corrupt: SkippedRecords,
) -> "tuple[Tally, list[tuple[ImageFile, str]]]":
    """The counts, and the files in class folders that could not be read, with the reasons."""
    root = class_folders.find(dataset_dir, flags.split)
    shards = None if root else ShardSet.open(dataset_dir, flags.split)
    if shards:
        check_sizes(shards)
    cli.import_tensorflow()
    from kimagenet.inference import evaluation

    batch_size = flags.batch_size or model.batch_size
    if shards is None:
        assert root is not None
        return evaluation.over_folder(model, root, augment, batch_size, flags.workers, flip=flags.flip)
    reading = {"loader": flags.loader, "workers": flags.workers, "device": flags.data_device, "corrupt": corrupt}
    return evaluation.over_shards(model, shards, augment, batch_size, flip=flags.flip, **reading), []


if __name__ == "__main__":
    sys.exit(main())
