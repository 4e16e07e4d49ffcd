"""From shards to batches. Importing this package imports neither TensorFlow nor DALI."""

from pipelines.augment import AugmentSpec
from pipelines.errors import UserError
from pipelines.loader import BatchSpec, Loader
from pipelines.loaders import open_loader
from pipelines.plan import EpochPlan
from pipelines.shards import ShardSet

__all__ = ["AugmentSpec", "BatchSpec", "EpochPlan", "Loader", "ShardSet", "UserError", "open_loader"]
