"""Checks whether this machine is ready to train: python -m kimagenet.doctor"""

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from kimagenet import cli
from kimagenet.backend import use_tensorflow
from kimagenet.diagnosis import findings, reads
from kimagenet.diagnosis.findings import Finding
from kimagenet.json_output import check_writable, write_json

DOCTOR_VERSION = 1
PATIENCE = 300  # seconds that all checks together may take, without the loaders' self tests

DESCRIPTION = """Checks versions, GPUs, DALI and its TensorFlow plugin, missing libraries, and which loader `auto`
chooses. Then tries each loader and a few training steps on generated images. With --dataset-dir it also measures
whether the storage of a data set feeds the loader; it drops up to 16 shards from memory for that. Each line begins with
"fine", "note" (works, but could work better) or "wrong", with a remedy below it. The exit code is 0, or 1 if anything
is wrong."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), examine, arguments)


def make_parser() -> cli.Parser:
    """The flags."""
    parser = cli.Parser("python -m kimagenet.doctor", "[flags]", DESCRIPTION)
    add = parser.add_argument
    add("--seconds", type=seconds, default=5.0, metavar="X", help="seconds for each loader's self test; default: 5")
    add("--dataset-dir", type=Path, metavar="DIR", help="folder of shards whose storage is measured; default: none")
    add("--require", nargs="+", default=[], choices=("dali", "gpu", "operator"), help="these are wrong if missing")
    add("--json", type=Path, metavar="FILE", help="also write the findings to a file")
    return parser


def seconds(text: str) -> float:
    """An argparse type: a number in (0, 600]."""
    if not 0 < (value := float(text)) <= 600:
        raise argparse.ArgumentTypeError(f"must be in (0, 600], not {value:g}")
    return value


def examine(flags: argparse.Namespace) -> int:
    """Prints each finding as soon as it is known; returns the exit code.

    The JSON has `version` (1), `fine` (whether nothing is wrong) and `findings`, a list with the fields of `Finding`.

    Raises:
        UserError: the JSON file cannot be written, or the data set cannot be opened.
    """
    use_tensorflow()
    if flags.json:
        check_writable(flags.json)
    if flags.dataset_dir:
        reads.open_split(flags.dataset_dir)
    found = []
    for finding in find_all(flags.seconds, flags.dataset_dir):
        if finding.state == "note" and finding.name in flags.require:
            finding = dataclasses.replace(finding, state="wrong")
        found.append(finding)
        show(finding)
    wrong = [finding.name for finding in found if finding.state == "wrong"]
    print(f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong")
    if flags.json:
        content = [dataclasses.asdict(finding) for finding in found]
        write_json(flags.json, {"version": DOCTOR_VERSION, "fine": not wrong, "findings": content})
    return cli.EXIT_FAILED if wrong else 0


def find_all(length: float, dataset: Path | None = None) -> Iterator[Finding]:
    """The findings of all checks, in order.

    Args:
        length: of each loader's self test and of the measurement of the storage, in seconds.
        dataset: a folder of shards whose storage is measured, or None.
    """
    yield from findings.installed()
    if dataset:
        yield findings.leftovers(dataset)
    command = [sys.executable, "-m", "kimagenet.diagnosis.libraries", str(length), *([str(dataset)] if dataset else [])]
    with tempfile.TemporaryFile("w+", errors="replace") as notes:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=notes, text=True)
        watch = threading.Timer(PATIENCE + 5 * length, process.kill)
        watch.start()
        try:
            yield from follow(process, notes)
        finally:
            watch.cancel()
            process.kill()
            process.wait()


def follow(process: subprocess.Popen, notes: IO[str]) -> Iterator[Finding]:
    """The findings that a process of `kimagenet.diagnosis.libraries` writes, and one more if the process fails.

    Args:
        process: writes one JSON object per line to its stdout.
        notes: its stderr.
    """
    begun = "TensorFlow"
    assert process.stdout is not None
    for line in map(json.loads, process.stdout):
        if "begins" in line:
            begun = line["begins"]
        else:
            yield Finding(**line)
    if code := process.wait():
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        notes.seek(0)
        last = next((line for line in reversed(notes.read().splitlines()) if line.strip()), "")
        yield Finding(
            begun,
            "wrong",
            f"the process of this check {how}: {last.strip()}",
            "`python -m kimagenet.diagnosis.libraries 1` shows all its messages",
        )


def show(finding: Finding) -> None:
    """Prints a finding in one line, with its remedy below."""
    print(f"{finding.state:5}  {finding.name:13} {finding.text}")
    if finding.remedy:
        print(f"{'':20} → {finding.remedy}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
