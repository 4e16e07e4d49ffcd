"""Is this machine ready to train? python -m kimagenet.doctor"""

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
from kimagenet.diagnosis import findings
from kimagenet.diagnosis.findings import Finding
from kimagenet.json_output import check_writable, write_json

DOCTOR_VERSION = 1
PATIENCE = 300  # seconds that all checks together may take, beside the self tests

DESCRIPTION = """Looks at versions, GPUs, DALI and its TensorFlow plugin, missing libraries, and which loader `auto`
takes; then tries each loader and a few training steps on drawn images. A line says "fine", "note" (works, but not as
well as it could) or "wrong", and what mends it. The exit code is 0, or 1 if anything is wrong."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.run(make_parser(), examine, arguments)


def make_parser() -> cli.Parser:
    """The flags."""
    parser = cli.Parser("python -m kimagenet.doctor", "[flags]", DESCRIPTION)
    add = parser.add_argument
    add("--seconds", type=seconds, default=5.0, metavar="X", help="length of each loader's self test; default: 5")
    add("--require", nargs="+", default=[], choices=("dali", "gpu", "operator"), help="what is wrong if it is missing")
    add("--json", type=Path, metavar="FILE", help="write the findings there as well")
    return parser


def seconds(text: str) -> float:
    """An argparse type."""
    if not 0 < (value := float(text)) <= 600:
        raise argparse.ArgumentTypeError(f"must be in (0, 600], not {value:g}")
    return value


def examine(flags: argparse.Namespace) -> int:
    """Prints each finding as it comes; returns the exit code.

    The JSON, version 1: `fine` (whether nothing is wrong) and `findings`, a list with the fields of `Finding`.
    """
    if flags.json:
        check_writable(flags.json)
    findings = []
    for finding in find_all(flags.seconds):
        if finding.state == "note" and finding.name in flags.require:
            finding = dataclasses.replace(finding, state="wrong")
        findings.append(finding)
        show(finding)
    wrong = [finding.name for finding in findings if finding.state == "wrong"]
    print(f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong")
    if flags.json:
        found = [dataclasses.asdict(finding) for finding in findings]
        write_json(flags.json, {"version": DOCTOR_VERSION, "fine": not wrong, "findings": found})
    return cli.EXIT_FAILED if wrong else 0


def find_all(length: float) -> Iterator[Finding]:
    """The findings of all findings, in order; `length` is that of a self test in seconds."""
    yield from findings.installed()
    command = [sys.executable, "-m", "kimagenet.diagnosis.libraries", str(length)]
    with tempfile.TemporaryFile("w+", errors="replace") as notes:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=notes, text=True)
        watch = threading.Timer(PATIENCE + 3 * length, process.kill)
        watch.start()
        try:
            yield from follow(process, notes)
        finally:
            watch.cancel()
            process.kill()
            process.wait()


def follow(process: subprocess.Popen, notes: IO[str]) -> Iterator[Finding]:
    """The findings that a process of `kimagenet.diagnosis.libraries` writes; its untimely end is one as well."""
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
            f"the process that checked it {how}: {last.strip()}",
            "`python -m kimagenet.diagnosis.libraries 1` shows all it writes",
        )


def show(finding: Finding) -> None:
    """A line, and below it the remedy."""
    print(f"{finding.state:5}  {finding.name:13} {finding.text}")
    if finding.remedy:
        print(f"{'':20} → {finding.remedy}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
