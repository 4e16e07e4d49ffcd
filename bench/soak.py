"""Does anything leak in half an hour? Loaders at full speed: short epochs, corrupt records, closing, reopening.

    python -m bench.soak --output FILE.json --png FILE.png [--dataset-dir DIR] [--minutes 15]

A cycle: a copy of the data set with some corrupt records is opened with on_corrupt="skip", read for some epochs as
fast as possible, and closed. Each corrupt record raises an exception, and the pipeline is built again. The loaders take
turns. Resident memory, threads and open files are recorded at the end of every epoch.
"""

import argparse
import gc
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import machine
from bench.measurement import Measurement, Result
from bench.memory import open_files, resident_megabytes, threads
from bench.tables import tables
from kimagenet import cli
from pipelines import AugmentSpec, BatchSpec, ShardSet, loaders
from pipelines.shards.shard_set import StoredImage

QUESTION = "soak"
CYCLE_STEPS = 576  # of a cycle, all its epochs together
CORRUPT = 4  # records
STEPS = 48  # of an epoch, which then takes a second or two
BATCH_SIZE, IMAGE_SIZE = 32, 128
UNITS = {"resident memory": "MB", "threads": "threads", "files": "files"}
State = tuple[float, float, int, int]  # seconds since the start, megabytes, threads, files


def make_parser() -> cli.Parser:
    """The flags."""
    parser = cli.Parser("python -m bench.soak", "--output FILE.json [flags]", (__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json", help="result file")
    parser.add_argument("--png", type=Path, metavar="FILE.png", help="also draw the curves")
    parser.add_argument("--dataset-dir", type=Path, metavar="DIR", help="folder of shards (default: the demo data)")
    parser.add_argument(
        "--minutes", type=float, default=15.0, metavar="M", help="minutes for each loader (default: 15)"
    )
    parser.add_argument(
        "--steps", type=cli.positive_int, default=STEPS, metavar="N", help=f"steps of an epoch (default: {STEPS})"
    )
    return parser


def soak(flags: argparse.Namespace) -> None:
    """Runs cycles for the given time, prints a line for each, and writes the files."""
    from kimagenet.demo import ensure_demo

    cli.import_tensorflow()
    directory = flags.dataset_dir or ensure_demo()
    names = [name for name in loaders.names() if name != "synthetic"]
    states: dict[str, list[State]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    skipped = dict.fromkeys(names, 0)
    with TemporaryDirectory() as scratch:
        shards = damaged_copy(ShardSet.open(directory, "train"), flags.steps * BATCH_SIZE, Path(scratch))
        epochs = max(1, CYCLE_STEPS // flags.steps)
        for name in names:
            for _ in cycle(name, shards, epochs):  # libraries are loaded and thread pools are filled
                pass
        start = time.monotonic()
        while min(spent.values()) < 60 * flags.minutes:
            name = min(names, key=lambda name: spent[name])
            began = time.monotonic()
            count = 0
            for count in cycle(name, shards, epochs):  # noqa: B007
                state = resident_megabytes(), threads(), open_files()
                states[name].append((time.monotonic() - start, *state))
            skipped[name] += count
            spent[name] += time.monotonic() - began
            print(f"{name}: {spent[name] / 60:.1f} min, {skipped[name]} skipped", *state, flush=True)
    measurements = measure(states, spent, skipped, len(shards.usable))
    Result(
        command=f"python -m bench.soak --output {flags.output.name} --minutes {flags.minutes:g} --steps {flags.steps}",
        date=machine.date(),
        commit=machine.commit(),
        machine=machine.machine() | {"load_average_5_min": round(os.getloadavg()[1], 1)},
        versions=machine.versions(),
        dataset=machine.describe(shards) | {"name": directory.name},
        measurements=tuple(measurements),
    ).save(flags.output)
    print(tables(measurements))
    if flags.png:
        draw(states, flags.png)


def damaged_copy(shards: ShardSet, count: int, folder: Path) -> ShardSet:
    """Copies the first records and overwrites the first bytes of `CORRUPT` images.

    Args:
        shards: the data set.
        count: how many records to copy.
        folder: for the copies of the shards.
    """
    records = shards.usable[:count]
    copies = {}
    for path in {shards.paths[number] for number in shards.shard[records]}:
        copies[path] = folder / path.name
        copies[path].write_bytes(path.read_bytes())
    for record in records[:: len(records) // CORRUPT][:CORRUPT].tolist():
        stored: StoredImage = shards.read(record)
        path, offset = shards.paths[shards.shard[record]], int(shards.offsets[record])
        with open(copies[path], "r+b") as stream:
            stream.seek(offset)
            place = stream.read(int(shards.lengths[record])).index(stored.encoded)
            stream.seek(offset + place)
            stream.write(bytes(20))
    return replace(shards, paths=tuple(copies.get(path, path) for path in shards.paths), usable=records)


def cycle(name: str, shards: ShardSet, epochs: int) -> Iterator[int]:
    """Opens a loader, reads some epochs and closes it; yields the number of skipped records after each epoch."""
    from kimagenet.training.feed import open_feed
    from kimagenet.training.recovery import SkippedRecords
    from kimagenet.training.strategy import choose_strategy

    batch, augment, corrupt = BatchSpec(BATCH_SIZE, IMAGE_SIZE), AugmentSpec.train(), SkippedRecords("skip")
    strategy = choose_strategy()
    with open_feed(strategy, name, shards, batch, augment, workers=1, corrupt=corrupt, timeout=600.0) as feed:
        for epoch in range(epochs):
            for _ in feed.epoch(epoch):
                pass
            if epoch == epochs - 1:
                gc.collect()
            yield len(feed.corrupt)


def measure(
    states: dict[str, list[State]], spent: dict[str, float], skipped: dict[str, int], records: int
) -> list[Measurement]:
    """Makes the measurements of a run; a round is an epoch.

    Args:
        states: the state after each epoch, by loader.
        spent: seconds that each loader was read for.
        skipped: corrupt records that each loader skipped.
        records: records of an epoch.
    """
    found = []
    for name, rows in states.items():
        images = len(rows) * records
        settings = {"epochs": len(rows), "minutes": spent[name] / 60, "skipped": skipped[name], "images": images}
        for column, (what, unit) in enumerate({"at": "s", **UNITS}.items()):
            rounds = tuple(row[column] for row in rows)
            found.append(Measurement(QUESTION, f"{name}: {what}", unit, rounds, settings))
    return found


def draw(states: dict[str, list[State]], path: Path) -> None:
    """Draws memory, threads and open files over time, one colour for each loader, and writes a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    figure.suptitle("Short epochs with corrupt records, loaders opened and closed", x=0.01, ha="left", size=11)
    for column, (axes, (what, unit)) in enumerate(
        zip(figure.subplots(len(UNITS), sharex=True), UNITS.items(), strict=True), start=1
    ):
        for name, rows in states.items():
            axes.plot([row[0] / 60 for row in rows], [row[column] for row in rows], ".", markersize=2, label=name)
        axes.set_ylabel(what if unit == what else f"{what}, {unit}")
        axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
    axes.set_xlabel("minutes")
    figure.legend(*axes.get_legend_handles_labels(), loc="upper right", ncols=2, frameon=False, markerscale=4)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), soak, arguments)


if __name__ == "__main__":
    sys.exit(main())
