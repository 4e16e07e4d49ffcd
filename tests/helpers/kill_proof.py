"""Kills a run with SIGKILL at random steps, many times, and compares it with a run that was not killed.

python -m tests.helpers.kill_proof --output DIR --loader dali --kills 20

It compares bit for bit the weights in final.keras and the batches of each step: a digest of their images and tones, and
their labels, which identify the records because each training record has a different label.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).parents[2]
IMAGE_SIZE, BATCH_SIZE, EPOCHS = 32, 12, 25
FLAGS = ["demo", f"--image-size={IMAGE_SIZE}", f"--batch-size={BATCH_SIZE}", f"--epochs={EPOCHS}", "--workers=1"]
FLAGS += ["--use-lookahead", "--iter-size=3", "--ema=0.9", "--dropout-rate=0.2", "--mixup=0.2", "--checkpoint-steps=3"]
AUGMENT, REPEATS = "trivial", 2
FLAGS += [f"--augment={AUGMENT}", f"--repeats={REPEATS}"]


@contextmanager
def noting_batches(notes: Path) -> Iterator[None]:
    """Each training batch appends a line to `notes` before its step is done: step, labels, a digest of its images.

    The digest is of the tones, too.
    """
    from kimagenet.training.feed import Feed

    original = Feed.epoch

    def epoch(self: Feed, epoch: int, start_step: int = 0, run_epoch: int | None = None) -> Iterator[Any]:
        for step, batch in enumerate(
            original(self, epoch, start_step, run_epoch), epoch * self.steps_per_epoch + start_step
        ):
            if not self.loaders[0].augment.is_evaluation:
                images, labels, *tones = (part.numpy() for part in batch)
                digest = hashlib.sha256(b"".join(part.tobytes() for part in (images, *tones))).hexdigest()
                note = {"step": step, "labels": labels.tolist(), "images": digest}
                with open(notes, "a") as stream:
                    stream.write(json.dumps(note) + "\n")
            yield batch

    with mock.patch.object(Feed, "epoch", epoch):
        yield


def read_notes(notes: Path) -> dict[int, dict[str, Any]]:
    """The batch of each step. A step that was done several times must have read the same each time."""
    found: dict[int, dict[str, Any]] = {}
    for line in notes.read_text().splitlines():
        note = json.loads(line)
        assert found.setdefault(note["step"], note) == note, f"step {note['step']} was different when it was repeated"
    assert sorted(found) == list(range(len(found))), "steps are missing"
    return found


def kill_at(arguments: list[str], notes: Path, step: int, delay: float = 0.0) -> None:
    """Starts a training in another process and kills it `delay` seconds after it has begun the step."""
    command = [sys.executable, "-m", "tests.helpers.kill_proof", f"--notes={notes}", *arguments]
    with open(notes, "a+") as stream, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            stream.seek(0, os.SEEK_END)
            while f'{{"step": {step}, ' not in stream.read():
                assert process.poll() is None, f"ended with {process.returncode} before step {step}"
                time.sleep(0.001)
            time.sleep(delay)
        finally:
            process.kill()


def planned_labels(dataset: Path, steps: int) -> list[list[int]]:
    """The labels of each step's records, according to the plan."""
    from pipelines import AugmentSpec, EpochPlan, ShardSet

    shards = ShardSet.open(dataset, "train")
    found: list[list[int]] = []
    while len(found) < steps:
        epoch = len(found) // (len(shards.usable) // BATCH_SIZE)
        augment = AugmentSpec.named(AUGMENT)
        records = EpochPlan(shards, augment, BATCH_SIZE, IMAGE_SIZE, epoch=epoch, repeats=REPEATS).records
        labels = [shards.read(record).label - shards.label_base for record in records.tolist()]
        found += np.reshape(labels, (-1, BATCH_SIZE)).tolist()
    return found


def prove(output: Path, loader: str, kills: int, seed: int) -> None:
    """Raises `AssertionError` if anything differs."""
    import keras

    from kimagenet import train
    from tests.helpers.data import TRAIN_RECORDS, write_tiny_dataset

    (dataset := output / "data").mkdir(parents=True)
    write_tiny_dataset(dataset, num_classes=TRAIN_RECORDS)
    arguments = [*FLAGS, f"--loader={loader}", f"--dataset-dir={dataset}"]
    with noting_batches(output / "whole.jsonl"):
        assert train.main([*arguments, f"--output={output / 'whole'}"]) == 0
    arguments.append(f"--output={output / 'killed'}")
    steps = EPOCHS * (TRAIN_RECORDS // BATCH_SIZE)
    rng = np.random.default_rng(seed)
    for step in sorted(rng.choice(np.arange(1, steps), kills, replace=False).tolist()):
        kill_at(arguments, output / "killed.jsonl", step, delay := 0.05 * rng.random())
        print(f"killed {1000 * delay:.0f} ms after the beginning of step {step}", flush=True)
    with noting_batches(output / "killed.jsonl"):
        assert train.main(arguments) == 0

    whole, killed = (read_notes(output / name) for name in ("whole.jsonl", "killed.jsonl"))
    assert whole == killed
    assert [whole[step]["labels"] for step in range(steps)] == planned_labels(dataset, steps)
    weights = [keras.models.load_model(output / name / "final.keras").get_weights() for name in ("whole", "killed")]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)
    done = len((output / "killed.jsonl").read_text().splitlines())
    print(
        f"{loader}: {kills} kills, {steps} steps, {done - steps} of them done twice: the same records, the same weights"
    )


def main() -> None:
    """The command line, and with --notes the process that is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--loader", default="dali")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--notes", type=Path, help=argparse.SUPPRESS)
    flags, rest = parser.parse_known_args()
    if flags.notes is None:
        prove(flags.output, flags.loader, flags.kills, flags.seed)
        return
    from kimagenet import train

    own = [f"--output={flags.output}", f"--loader={flags.loader}"]
    with noting_batches(flags.notes):
        sys.exit(train.main([*rest, *own]))


if __name__ == "__main__":
    main()
