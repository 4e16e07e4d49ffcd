"""Takes one batch of many and ends: argument 1 is a data set, argument 2 the loader's name."""

import sys
from dataclasses import replace

import numpy as np

from pipelines import AugmentSpec, BatchSpec, ShardSet, open_loader

shards = ShardSet.open(sys.argv[1], "train")
shards = replace(shards, usable=np.repeat(shards.usable, 100))
loader = open_loader(sys.argv[2], shards, BatchSpec(256, 48), AugmentSpec.train(), device="cpu")
iterator = iter(loader.epoch(0))
next(iterator)
