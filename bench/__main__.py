"""Measures the loaders on this machine and compares them with the decode limit. Default data: the demo data set."""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from bench import machine, peers
from bench.measurement import Measurement, Result, records_from
from bench.settings import AUGMENTS, Settings
from bench.storage.cases import CASES
from bench.tables import tables
from kimagenet import cli
from pipelines.loader import DEVICES, DTYPES
from pipelines.shards import remedies
from pipelines.shards.shard_set import ShardSet
from pipelines.system.limits import memory_bytes
from pipelines.system.pages import read_pages, share_in_memory
from pipelines.system.processes import cpu_count

QUESTIONS = (
    *("decode", "loaders", "peers", "training", "latency", "startup", "stream", "scaling", "memory", "build"),
    "policy",
    "storage",
)
_OTHERS = """  gpu, optimizers and report have separate flags: python -m bench gpu --help
"""
_EPILOG_NOTE = """
The candidates are measured in turns, in several rounds. A ratio compares turns of the same round. Figures are medians
of the rounds, with minimum and maximum. --batch-size, --image-size, --workers and --prefetch accept several values; the
question is measured for each combination. `python -m bench report FILE.json --output report.html` draws the results.
"""
SHORT_ROUNDS, SHORT_SECONDS = 2, 1.0
_READ_BEFORE = 0.6  # of the memory: smaller data sets are measured from memory


def make_parser() -> cli.Parser:
    """The flags; each question is listed with the first line of its docstring."""
    lines = "\n".join(f"  {name:10} {_summary(name)}" for name in QUESTIONS)
    parser = cli.Parser(
        "python -m bench",
        "[QUESTION | optimizers | report] [flags]",
        __doc__,
        f"questions:\n{lines}\n{_OTHERS}{_EPILOG_NOTE}",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "question", nargs="?", choices=QUESTIONS, metavar="QUESTION", help="default: all of them, with short turns"
    )
    data = parser.add_argument_group("data")
    data.add_argument("--dataset-dir", type=Path, metavar="DIR", help="folder of shards (default: the demo data)")
    data.add_argument("--split", default="train", help="split of the data set (default: train)")
    data.add_argument(
        "--second-dataset-dir",
        type=Path,
        metavar="DIR",
        help="loaders: also measure this copy of the images, compared with the decode limit of the first folder",
    )
    _add_what(parser.add_argument_group("what is measured"))
    _add_how(parser.add_argument_group("how it is measured"))
    return parser


def _add_what(what: argparse._ActionsContainer) -> None:
    what.add_argument("--loader", nargs="+", metavar="NAME", help="default: every loader that works on this machine")
    what.add_argument(
        "--augment", nargs="+", choices=AUGMENTS, default=["full", "standard"], help="(default: full, standard)"
    )
    what.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="for loaders (default: float32)")
    what.add_argument(
        "--batch-size", nargs="+", type=cli.positive_int, default=[64], metavar="N", help="images (default: 64)"
    )
    what.add_argument(
        "--image-size",
        nargs="+",
        type=cli.positive_int,
        default=[224],
        metavar="PIXELS",
        help="of a side (default: 224)",
    )
    what.add_argument(
        "--workers",
        nargs="+",
        type=cli.positive_int,
        default=[cpu_count()],
        metavar="N",
        help="threads (default: one for each core)",
    )
    what.add_argument(
        "--prefetch", nargs="+", type=cli.positive_int, default=[2], metavar="N", help="batches (default: 2)"
    )
    what.add_argument("--data-device", choices=DEVICES, default="auto", help="where dali decodes (default: auto)")
    what.add_argument(
        "--peers",
        nargs="+",
        choices=peers.names(),
        metavar="NAME",
        help="for peers and storage (default: all that work)",
    )
    what.add_argument(
        "--cases",
        nargs="+",
        choices=[case.name for case in CASES],
        default=[],
        metavar="NAME",
        help=f"for storage: of {', '.join(case.name for case in CASES)} (default: all that can be measured)",
    )


def _add_how(how: argparse._ActionsContainer) -> None:
    how.add_argument("--rounds", type=cli.positive_int, metavar="N", help="turns (default: 5; 2 for all questions)")
    how.add_argument(
        "--seconds", type=_positive, metavar="S", help="of a turn, without warm-up (default: 6; 1 for all questions)"
    )
    how.add_argument("--short", action="store_true", help="skip the parts that take minutes")
    how.add_argument(
        "--compare-read-ahead",
        action="store_true",
        help="storage: also measure our loaders with nothing fetched ahead",
    )
    how.add_argument(
        "--throttle",
        action="store_true",
        help="storage: as root, mount slow views of the data set and limit its disk by a control group and its "
        "read-ahead; all of it is undone after each case",
    )
    how.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")


def main(arguments: argparse.Namespace) -> None:
    """Measures, prints a table for each group of measurements and writes the result file."""
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    cli.import_tensorflow()
    settings = _settings(arguments)
    dataset = machine.describe(settings[0].shards)
    print("{records:,} records; mean: {mean_width} × {mean_height} pixels, {mean_kilobytes} kB".format(**dataset))
    measurements: list[Measurement] = []
    for question in [arguments.question] if arguments.question else QUESTIONS:
        for these in settings:
            measurements += _printed(question, these)
    result = Result(
        command=machine.command(complete(sys.argv[1:], settings[0])),
        date=machine.date(),
        commit=machine.commit(),
        machine=machine.machine(),
        versions=machine.versions(),
        dataset=dataset,
        measurements=tuple(measurements),
    )
    if arguments.output:
        result.save(arguments.output)
        page = arguments.output.with_suffix(".html")
        print(
            f"\nwritten: {arguments.output}; to draw it: "
            f"`{remedies.module('bench', 'report', arguments.output, '--output', page)}`"
        )


def complete(arguments: Sequence[str], settings: Settings) -> list[str]:
    """Adds the default rounds and seconds to a command line, so that a result file can be repeated when they change.

    Args:
        arguments: the arguments as given.
        settings: what was measured with.

    Returns:
        The arguments with --rounds and --seconds.
    """
    flags = {"--rounds": str(settings.rounds), "--seconds": f"{settings.seconds:g}"}
    given = {argument.partition("=")[0] for argument in arguments}
    return [*arguments, *(word for flag, value in flags.items() if flag not in given for word in (flag, value))]


def ask(question: str, settings: Settings) -> Iterator[Measurement]:
    """Measures one question.

    Args:
        question: one of `QUESTIONS`.
        settings: what to measure with.

    Returns:
        An iterator that measures while it is read.
    """
    return import_module(f"bench.{question}").measure(settings)


def _printed(question: str, settings: Settings) -> Iterator[Measurement]:
    """Measures one question and prints a table whenever a group of measurements with the same settings is complete."""
    print(f"\n{question}: {_summary(question)}", flush=True)
    for group, measurements in itertools.groupby(_with_source(question, settings), key=lambda m: m.settings):
        found = list(measurements)
        print("\n" + ", ".join(f"{name} {value}" for name, value in group.items()))
        print(tables(found), flush=True)
        yield from found


def _with_source(question: str, settings: Settings) -> Iterator[Measurement]:
    """Measures one question. Each measurement says whether records were read from memory or from storage.

    Data sets that fit are read into memory before, so that the first turn does not wait for the storage.
    """
    paths = [path for shards in (settings.shards, settings.second) if shards is not None for path in shards.paths]
    if question != "storage" and sum(path.stat().st_size for path in paths) < _READ_BEFORE * memory_bytes():
        for path in paths:
            read_pages(path)
    before = share_in_memory(paths)
    for _, measurements in itertools.groupby(ask(question, settings), key=lambda m: m.settings):
        found = list(measurements)
        after = share_in_memory(paths)
        for m in found:
            source = m.settings.get("records_from", records_from(before, after))
            yield replace(m, settings=m.settings | {"records_from": source})
        before = after


def _settings(arguments: argparse.Namespace) -> list[Settings]:
    """The settings for each combination of the flags that accept several values."""
    import tensorflow as tf

    everything = arguments.question is None
    device = arguments.data_device
    if device == "auto":
        device = "gpu" if tf.config.list_physical_devices("GPU") else "cpu"
    shards = ShardSet.open(arguments.dataset_dir or _demo(), arguments.split)
    second = arguments.second_dataset_dir and ShardSet.open(arguments.second_dataset_dir, arguments.split)
    base = Settings(
        shards,
        tuple(arguments.loader or _working_loaders(device)),
        augments=tuple(arguments.augment),
        dtypes=tuple(arguments.dtype),
        device=device,
        rounds=arguments.rounds or (SHORT_ROUNDS if everything else 5),
        seconds=arguments.seconds or (SHORT_SECONDS if everything else 6.0),
        short=arguments.short or everything,
        second=second,
        cases=tuple(arguments.cases),
        peers=None if arguments.peers is None else tuple(arguments.peers),
        may_change=arguments.throttle,
        compare_read_ahead=arguments.compare_read_ahead,
    )
    combinations = itertools.product(arguments.batch_size, arguments.image_size, arguments.workers, arguments.prefetch)
    names = ("batch_size", "image_size", "workers", "prefetch")
    return [base.replace(**dict(zip(names, values, strict=True))) for values in combinations]


def _working_loaders(device: str) -> list[str]:
    from pipelines import loaders

    working = []
    for name in loaders.names():
        if problem := import_module(f"pipelines.loaders.{name}").unavailable(device):
            print(f"loader {name} is skipped: {problem}")
        else:
            working.append(name)
    return working


def _demo() -> Path:
    from kimagenet.demo import ensure_demo

    folder = ensure_demo()
    print(f"no --dataset-dir given: measuring with the demo data in {folder}")
    return folder


def _summary(question: str) -> str:
    return (import_module(f"bench.{question}").__doc__ or "").partition("\n")[0]


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"must be positive, not {value}")
    return value


if __name__ == "__main__":
    if sys.argv[1:2] == ["report"]:
        from bench import report

        raise SystemExit(cli.run(report.make_parser(), report.main, sys.argv[2:]))
    if sys.argv[1:2] == ["gpu"]:
        from bench.gpu import command

        raise SystemExit(cli.run(command.make_parser(), command.main, sys.argv[2:]))
    if sys.argv[1:2] == ["optimizers"]:  # it needs no data set, so it has separate flags
        from bench import optimizers

        raise SystemExit(optimizers.main(sys.argv[2:]))
    raise SystemExit(cli.run(make_parser(), main))
