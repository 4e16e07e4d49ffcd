"""Answers every open question about decoding and training on a GPU, in the order of importance.

Each case runs in a separate process with a time limit, so that a crash is a result and not the end. The file is
complete after each case; the same command again continues it. Steps a, b and c need no TensorFlow.
"""

import argparse
import time
from pathlib import Path

from bench import machine
from bench.gpu import plan
from bench.gpu.case import Case, Outcome, Settings, run_case
from bench.gpu.record import Record, table
from kimagenet import cli
from kimagenet.backend import use_tensorflow
from pipelines.shards.shard_set import ShardSet

_LEAST = 5.0  # seconds that must be left for a case to start
_EPILOG = """`--device cpu` rehearses every step on a machine without a GPU. docs/gpu.md explains the table."""


def make_parser() -> cli.Parser:
    """The flags."""
    parser = cli.Parser("python -m bench gpu", "[flags]", __doc__, _EPILOG)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--minutes", type=_positive, default=8.0, metavar="M", help="time for all cases together (8)")
    add("--device", choices=("gpu", "cpu"), default="gpu", help="cpu: a rehearsal (gpu)")
    add("--dataset-dir", type=Path, metavar="DIR", help="folder of shards; default: the demo data")
    add("--split", default="train", help="%(default)s")
    add("--output", type=Path, default=Path("gpu.json"), metavar="FILE", help="results, as JSON (%(default)s)")
    add("--seconds", type=_positive, default=3.0, metavar="S", help="length of each measurement (3)")
    add("--steps", nargs="+", choices=tuple("abcdefgh"), metavar="LETTER", help="only these, of a to h")
    add("--short", action="store_true", help="a rehearsal of a few seconds: steps a to c")
    add("--again", action="store_true", help="repeat the cases of the file that failed, crashed or hung")
    add("--with-broken", action="store_true", help="also run a case that crashes and one that hangs")
    add(
        "--accuracy",
        nargs="+",
        default=[],
        metavar="WORD",
        help="step h: a folder of shards, then arguments of kimagenet.train",
    )
    return parser


def main(flags: argparse.Namespace) -> int:
    """Runs the cases and prints the table; returns the exit code, 1 if a case went wrong."""
    use_tensorflow()
    dataset = flags.dataset_dir or _demo()
    shards = ShardSet.open(dataset, flags.split)
    size = 64 if flags.short else 224
    settings = Settings(
        str(dataset), flags.split, flags.device, 0.3 if flags.short else flags.seconds, flags.short, size
    )
    if flags.device == "cpu" and not flags.short:
        settings = Settings(str(dataset), flags.split, "cpu", min(flags.seconds, 1.5), True, 96)
    chosen = plan.cases(flags.device, short=flags.short, accuracy=tuple(flags.accuracy))
    chosen = [case for case in chosen if not flags.steps or case.step in flags.steps]
    if flags.with_broken:
        chosen = [*plan.broken(), *chosen]
    described = machine.describe(shards)
    about = {"device": flags.device, "dataset": described, "image_size": settings.image_size}
    stamp = {"date": machine.date(), "commit": machine.commit(), "machine": machine.machine()}
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    record = Record(flags.output, about, stamp | {"versions": machine.versions()})
    began = time.monotonic()
    run_all(chosen, settings, record, 60 * flags.minutes, again=flags.again)
    keys = [case.key for case in chosen]
    print(table(record.outcomes, keys))
    print(f"\n{time.monotonic() - began:.0f} seconds; written: {flags.output}")
    ended = [record.outcomes[key].state for key in keys if key in record.outcomes]
    missing = len(keys) - len(ended) + ended.count("cut")
    if missing:
        print(f"{missing} cases were not finished in the time; the same command again continues")
    return cli.EXIT_FAILED if {"failed", "crashed", "hung"} & set(ended) else 0


def run_all(chosen: list[Case], settings: Settings, record: Record, seconds: float, *, again: bool = False) -> None:
    """Runs what the record does not have, until the time is over.

    Args:
        chosen: the cases in order.
        settings: of all of them.
        record: gets each outcome as it comes.
        seconds: for all together.
        again: also repeat what failed, crashed or hung.
    """
    deadline = time.monotonic() + seconds
    for case in chosen:
        if record.is_final(case.key) and not (again and record.outcomes[case.key].state not in ("done", "skipped")):
            print(f"{case.key}: in the file already, {record.outcomes[case.key].state}")
            continue
        left = deadline - time.monotonic()
        if left < _LEAST:
            print(f"{case.key}: no time left")
            continue
        outcome = run_case(case, settings, left)
        record.add(outcome)
        _show(outcome)


def _show(outcome: Outcome) -> None:
    notice = outcome.said[-1] if outcome.said else outcome.figures.get("host_decoding", "")
    why = f": {notice}" if notice else ""
    print(f"{outcome.key}: {outcome.state} after {outcome.seconds:.0f} s{why}", flush=True)


def _demo() -> Path:
    from kimagenet.demo import ensure_demo

    folder = ensure_demo()
    print(f"no --dataset-dir: measuring with the demo data in {folder}")
    return folder


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"must be positive, not {value}")
    return value
