"""From images to shards to batches. Names are imported on first use: importing this package loads no TensorFlow."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.augment import AugmentSpec
    from pipelines.errors import UserError
    from pipelines.loader import BatchSpec, Loader
    from pipelines.loaders import open_loader
    from pipelines.order.spec import ShuffleSpec
    from pipelines.plan import EpochPlan
    from pipelines.shards.shard_set import ShardSet

__all__ = ["AugmentSpec", "BatchSpec", "EpochPlan", "Loader", "ShardSet", "ShuffleSpec", "UserError", "open_loader"]

_MODULES = {
    "AugmentSpec": "pipelines.augment",
    "BatchSpec": "pipelines.loader",
    "EpochPlan": "pipelines.plan",
    "Loader": "pipelines.loader",
    "ShardSet": "pipelines.shards.shard_set",
    "ShuffleSpec": "pipelines.order.spec",
    "UserError": "pipelines.errors",
    "open_loader": "pipelines.loaders",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
