"""Ctrl-C, SIGKILL and full disks at random moments: nothing corrupt afterwards, the same command ends what it began.

    python -m tests.helpers.interrupt --rounds 10 [--command NAME …] [--how sigint kill full] [--seed 0]

Each round: the command in a new process, stopped at a random moment of the time that a whole one takes (or, `full`,
with no file allowed to grow beyond a random size); then the same command again, undisturbed. Afterwards everything has
to be as after a command that was never disturbed: the same bytes for shards, indexes and dataset.json, the same weights
for a run; and no temporary files.
"""

import argparse
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from kimagenet import models
from pipelines import ShardSet
from tests.helpers import faults
from tests.helpers.data import jpeg, photo, write_tiny_dataset

ROOT = Path(__file__).parents[2]
RUN = ["--loader=tfdata", "--image-size=32", "--batch-size=12", "--epochs=3", "--checkpoint-steps=3", "--workers=1"]
STOPPED = {"sigint": {0, 75, 130, -2}, "kill": {0, -9}, "full": {0, 1, 2}}


@dataclass(frozen=True)
class Command:
    """`prepare` fills a folder, `line` works in it, `result` is what has to be the same in the end.

    `code` is the exit code of one that nobody disturbs.
    """

    prepare: Callable[[Path], object]
    line: Callable[[Path], list[str]]
    result: Callable[[Path], object]
    code: int = 0


def write_images(folder: Path) -> None:
    """60 images in two classes."""
    rng = np.random.default_rng(0)
    for number in range(60):
        path = folder / "images" / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photo(rng, number % 2, 60, 70)))


def write_shards(folder: Path) -> None:
    """Shards without anything beside them, as the original project made them."""
    (folder / "shards").mkdir()
    write_tiny_dataset(folder / "shards")
    for path in (folder / "shards").iterdir():
        if path.suffix:
            path.unlink()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; of models and checkpoints what counts, not the time in their zip files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path) -> bytes:
    """Of final.keras."""
    with zipfile.ZipFile(folder / "run" / "final.keras") as archive:
        return archive.read("model.weights.h5")


def numbers(folder: Path) -> list[np.ndarray]:
    """The weights of final.keras, as numbers: an HDF5 file has times in it."""
    import io

    import h5py

    found: list[np.ndarray] = []
    with h5py.File(io.BytesIO(weights(folder))) as file:
        file.visititems(lambda _, item: found.append(item[()]) if isinstance(item, h5py.Dataset) else None)
    return found


COMMANDS = {
    "build": Command(
        write_images,
        lambda folder: ["tools.build_shards", f"--source={folder}/images", f"--output={folder}/shards", "--workers=2"],
        lambda folder: contents(folder / "shards"),
    ),
    "index": Command(
        write_shards,
        lambda folder: ["tools.build_index", f"{folder}/shards", "--workers=2"],
        lambda folder: contents(folder / "shards"),
    ),
    "train": Command(
        lambda folder: write_tiny_dataset_in(folder / "shards"),
        lambda folder: ["kimagenet.train", "demo", *RUN, f"--dataset-dir={folder}/shards", f"--output={folder}/run"],
        lambda folder: [array.tobytes() for array in numbers(folder)],
    ),
    "check": Command(
        lambda folder: faults.corrupt(ShardSet.open(write_tiny_dataset_in(folder / "shards"), "train"), [7]),
        lambda folder: ["tools.check_shards", f"{folder}/shards", "--quarantine", "--workers=2"],
        lambda folder: contents(folder / "shards"),
        code=1,
    ),
    "export": Command(
        lambda folder: models.build("demo", 10, 32).save(folder / "model.keras"),
        lambda folder: ["kimagenet.export", f"{folder}/model.keras", f"--output={folder}/exported"],
        lambda folder: sorted(str(path.relative_to(folder)) for path in (folder / "exported").rglob("*")),
    ),
}


def write_tiny_dataset_in(folder: Path) -> Path:
    """The tests' data set in a new folder."""
    folder.mkdir()
    return write_tiny_dataset(folder)


def execute(line: list[str], stop: Callable[[subprocess.Popen], None], limit: int | None = None) -> tuple[int, str]:
    """Exit code and stderr of a command that `stop` may stop; no file may grow beyond `limit` bytes."""

    def restrict() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background process has it ignored
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = subprocess.Popen(
        [sys.executable, "-m", *line],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restrict,
    )
    stop(process)
    _, error = process.communicate()
    return process.returncode, error


def round_of(command: Command, how: str, seconds: float, size: int, random: Random, expected: object) -> str:
    """One round; what is wrong afterwards, or how it went in a word or two."""

    def stop(process: subprocess.Popen) -> None:
        if how != "full":
            time.sleep(random.uniform(0.05, seconds))
            process.send_signal(signal.SIGINT if how == "sigint" else signal.SIGKILL)

    with tempfile.TemporaryDirectory(prefix="interrupt-") as name:
        folder = Path(name)
        command.prepare(folder)
        line = command.line(folder)
        code, error = execute(line, stop, int(size * random.random()) if how == "full" else None)
        if code not in {command.code, *STOPPED[how]}:
            return f"WRONG: exit code {code}: {error[-500:]}"
        again = 0
        # An output that is there already is refused with 2: the first command was done, or nearly.
        if code != command.code and (again := execute(line, lambda _: None)[0]) not in (command.code, 2):
            return f"WRONG: exit code {again} of the second"
        if command.result(folder) != expected:
            return "WRONG: another result"
        if left := [str(path) for path in folder.rglob(".*") if re.search(r"\.tmp$|\.keras$", path.name)]:
            return f"WRONG: left behind {left}"
        return "had ended" if code == command.code else f"stopped with {code}"


def measure(command: Command) -> tuple[float, int, object]:
    """Seconds of an undisturbed command, bytes of the largest file it writes, its result."""
    with tempfile.TemporaryDirectory(prefix="interrupt-") as name:
        folder = Path(name)
        command.prepare(folder)
        before = set(folder.rglob("*"))
        began = time.monotonic()
        code, error = execute(command.line(folder), lambda _: None)
        if code != command.code:
            raise RuntimeError(error)
        seconds = time.monotonic() - began
        new = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and path not in before]
        size = max(new, default=0)
        return seconds, size, command.result(folder)


def campaign(name: str, hows: list[str], rounds: int, seed: int) -> Counter[str]:
    """So many rounds of each kind."""
    random = Random(seed)
    seconds, size, expected = measure(COMMANDS[name])
    found: Counter[str] = Counter()
    for _ in range(rounds):
        for how in hows:
            found[f"{name}, {how}: {round_of(COMMANDS[name], how, seconds, size, random, expected)}"] += 1
    return found


def main() -> int:
    """The command line; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--command", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--how", nargs="+", choices=STOPPED, default=list(STOPPED))
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    wrong = 0
    for name in flags.command:
        for what, count in sorted(campaign(name, flags.how, flags.rounds, flags.seed).items()):
            print(f"{count:4} × {what}", flush=True)
            wrong += count if "WRONG" in what else 0
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
