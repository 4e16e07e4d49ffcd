"""Compares each operation of a policy, by each loader and the training device, with Pillow and NumPy on real photos.

python -m tests.helpers.policy_table DIR --records 200

Each record draws its magnitude and sign, in the ranges of TrivialAugmentWide. Differences are in grey levels.
"""

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf

from kimagenet.training.tones import apply_tones
from pipelines import AugmentSpec, BatchSpec, ShardSet, open_loader
from pipelines.policy import OPERATIONS, Policy
from pipelines.uniform import RecordUniform
from tests.helpers import oracle

BATCH_SIZE = 20


def difference(shards: ShardSet, names: list[str], operation: str, records: int, size: int) -> dict[str, list[float]]:
    """By loader: the mean and the greatest difference of all pixels, and the share of those over one level."""
    spec = AugmentSpec(policy=Policy(names=(operation,)))
    numbers: np.ndarray | None = None
    expected: list[np.ndarray] = []
    found = {}
    for name in names:
        with open_loader(name, shards, BatchSpec(BATCH_SIZE, size), spec, device="cpu", strict=True) as loader:
            pairs = zip(loader.batches(0), loader.tones(0), range(records // BATCH_SIZE), strict=False)
            batches = [apply_tones(images, tf.constant(tones)).numpy() for (images, _), tones, _ in pairs]
            images = (np.concatenate(batches) + 1) * 127.5
            if numbers is None:
                numbers = loader.plan(0).records_between(0, len(images))
                expected = [pixels(shards, number, spec, size) for number in numbers.tolist()]
        apart = np.abs(images - np.stack(expected))
        found[name] = [float(apart.mean()), float(apart.max()), float((apart > 1.01).mean())]
    return found


def pixels(shards: ShardSet, number: int, spec: AugmentSpec, size: int) -> np.ndarray:
    """A record as the oracle has it."""
    uniform = RecordUniform(0, 0, np.array([number]))
    u = {column: float(uniform(column)[0]) for column in range(oracle.COLUMNS)}
    image = oracle.expected(shards.read(number).encoded, spec, u, size)
    return oracle.finished(image, oracle.policy(spec, u, size))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--loader", nargs="+", default=["dali", "tfdata"])
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=224)
    flags = parser.parse_args()
    shards = ShardSet.open(flags.directory, "train")
    print(f"| operation | {' | '.join(f'{name}: mean, greatest, share over 1' for name in flags.loader)} |")
    print("|---" * (1 + len(flags.loader)) + "|")
    for operation in OPERATIONS:
        rows = difference(shards, flags.loader, operation, flags.records, flags.image_size)
        cells = (f"{mean:.4f}, {most:.1f}, {share:.3%}" for mean, most, share in rows.values())
        print(f"| {operation} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
