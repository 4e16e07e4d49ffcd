"""Measures the loaders on this machine beside the limit that decoding sets; without --dataset-dir, on the demo data."""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from bench import machine
from bench.measurement import Measurement, Result
from bench.settings import AUGMENTS, Settings
from kimagenet import cli
from pipelines.loader import DEVICES, DTYPES
from pipelines.shards.shard_set import ShardSet
from pipelines.system.processes import cpu_count

QUESTIONS = ("decode", "loaders", "peers", "training", "latency", "startup", "scaling", "memory", "build")
_OTHERS = """  gpu, optimizers and report have flags of their own: python -m bench gpu --help
"""
_EPILOG_NOTE = """
Candidates take turns in interleaved rounds; a ratio compares turns of the same round. Every figure is the median of the
rounds with the least and the greatest. --batch-size, --image-size, --workers and --prefetch take several values, and
the question is asked for each combination. `python -m bench report FILE.json … --output report.html` draws the results.
"""
SHORT_ROUNDS, SHORT_SECONDS = 2, 1.0


def make_parser() -> cli.Parser:
    """The flags. No question is imported for more than its first line."""
    lines = "\n".join(f"  {name:10} {_docstring(name)}" for name in QUESTIONS)
    parser = cli.Parser(
        "python -m bench", "[QUESTION | report] [flags]", __doc__, f"questions:\n{lines}\n{_OTHERS}{_EPILOG_NOTE}"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("question", nargs="?", choices=QUESTIONS, metavar="QUESTION", help="default: all, short")
    data = parser.add_argument_group("data")
    data.add_argument("--dataset-dir", type=Path, metavar="DIR", help="folder of shards; default: the demo data")
    data.add_argument("--split", default="train", help="%(default)s")
    data.add_argument(
        "--second-dataset-dir",
        type=Path,
        metavar="DIR",
        help="loaders: the same images stored otherwise, against the first folder's limit",
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument("--loader", nargs="+", metavar="NAME", help="default: every loader that works here")
    what.add_argument("--augment", nargs="+", choices=AUGMENTS, default=["full", "standard"], help="full standard")
    what.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="loaders: float32")
    what.add_argument("--batch-size", nargs="+", type=cli.positive_int, default=[64], metavar="N", help="64")
    what.add_argument("--image-size", nargs="+", type=cli.positive_int, default=[224], metavar="PIXELS", help="224")
    what.add_argument(
        "--workers", nargs="+", type=cli.positive_int, default=[cpu_count()], metavar="N", help="a core each"
    )
    what.add_argument("--prefetch", nargs="+", type=cli.positive_int, default=[2], metavar="N", help="batches: 2")
    what.add_argument("--data-device", choices=DEVICES, default="auto", help="where dali decodes; %(default)s")
    how = parser.add_argument_group("how it is measured")
    how.add_argument("--rounds", type=cli.positive_int, metavar="N", help="5; for all questions at once: 2")
    how.add_argument(
        "--seconds", type=_positive, metavar="S", help="of a turn after its warm-up: 6; for all at once: 1"
    )
    how.add_argument("--short", action="store_true", help="leave out what takes minutes")
    how.add_argument("--output", type=Path, metavar="FILE", help="write the result as JSON")
    return parser


def main(arguments: argparse.Namespace) -> None:
    """Asks, prints each figure as it comes, writes the file."""
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    cli.import_tensorflow()
    settings = _settings(arguments)
    dataset = machine.describe(settings[0].shards)
    print("{records:,} records of {mean_width} × {mean_height} pixels, {mean_kilobytes} kB".format(**dataset))
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
        print(f"\nwritten: {arguments.output}; draw it with `python -m bench report {arguments.output} --output …`")


def complete(arguments: Sequence[str], settings: Settings) -> list[str]:
    """The command line with the rounds and seconds that it left to defaults: these may change, a result stays."""
    flags = {"--rounds": str(settings.rounds), "--seconds": f"{settings.seconds:g}"}
    given = {argument.partition("=")[0] for argument in arguments}
    return [*arguments, *(word for flag, value in flags.items() if flag not in given for word in (flag, value))]


def ask(question: str, settings: Settings) -> Iterator[Measurement]:
    """The measurements of one question, as they come."""
    return import_module(f"bench.{question}").measure(settings)


def _printed(question: str, settings: Settings) -> Iterator[Measurement]:
    print(f"\n{question}: {_docstring(question)}")
    heading: dict[str, object] = {}
    for measurement in ask(question, settings):
        if measurement.settings != heading:
            heading = measurement.settings
            print("  " + ", ".join(f"{name} {value}" for name, value in heading.items()))
        print(f"    {measurement.line()}", flush=True)
        yield measurement


def _settings(arguments: argparse.Namespace) -> list[Settings]:
    """One for each combination of the flags that take several values."""
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
    )
    combinations = itertools.product(arguments.batch_size, arguments.image_size, arguments.workers, arguments.prefetch)
    names = ("batch_size", "image_size", "workers", "prefetch")
    return [base.replace(**dict(zip(names, values, strict=True))) for values in combinations]


def _working_loaders(device: str) -> list[str]:
    from pipelines import loaders

    working = []
    for name in loaders.names():
        if problem := import_module(f"pipelines.loaders.{name}").unavailable(device):
            print(f"loader {name} is left out: {problem}")
        else:
            working.append(name)
    return working


def _demo() -> Path:
    from kimagenet.demo import ensure_demo

    folder = ensure_demo()
    print(f"no --dataset-dir: measuring with the demo data in {folder}")
    return folder


def _docstring(question: str) -> str:
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
    if sys.argv[1:2] == ["optimizers"]:  # needs no data, so it has flags of its own
        from bench import optimizers

        raise SystemExit(optimizers.main(sys.argv[2:]))
    raise SystemExit(cli.run(make_parser(), main))
