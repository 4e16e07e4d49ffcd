"""Reads large batches with corrupt records through DALI; argument 1 is an empty folder for the shard."""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from kimagenet.training.feed import open_feed
from kimagenet.training.recovery import SkippedRecords
from pipelines import AugmentSpec, BatchSpec, ShardSet
from pipelines.shards.dataset import ClassInfo, DatasetInfo, ShardInfo, SplitInfo
from pipelines.shards.index import scan, write_index
from pipelines.shards.records import frame
from pipelines.shards.shard_set import write_sizes
from tests.helpers import faults
from tests.helpers.data import example, jpeg, photo

folder, count = Path(sys.argv[1]), 192
image = jpeg(photo(np.random.default_rng(0), 0, 375, 500))
path = folder / "train-00000-of-00001"
path.write_bytes(frame(example(image, 1)) * count)
write_index(path, scan(path))
write_sizes(folder / "sizes.npy", np.tile([375, 500], (count, 1)))
split = SplitInfo(shards=[ShardInfo(file=path.name, records=count, bytes=path.stat().st_size)], sizes="sizes.npy")
DatasetInfo(label_base=1, classes=[ClassInfo(name="a")], splits={"train": split}).save(folder)
shards = ShardSet.open(folder, "train")
faults.corrupt(shards, range(0, count, 24))
strategy, batch, corrupt = tf.distribute.get_strategy(), BatchSpec(32, 64), SkippedRecords("skip")
with open_feed(strategy, "dali", shards, batch, AugmentSpec.train(), workers=1, corrupt=corrupt) as feed:
    for epoch in range(3):
        assert sum(1 for _ in feed.epoch(epoch)) == 5
assert sorted(corrupt.of("train")) == list(range(0, count, 24))
tf.print("written to std::cout", output_stream=sys.stdout)
print("whole")
