"""From batches to trained Keras models. Names are imported on first use, so importing this package loads no TensorFlow.

model = kimagenet.models.build("resnet50", num_classes=10)
optimizer = kimagenet.optim.Lookahead(keras.optimizers.Adam(1e-2), sync_period=5, slow_step_size=0.5)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kimagenet import models, optim
    from kimagenet.demo import ensure_demo
    from kimagenet.recipe import Recipe
    from kimagenet.runs.directory import RunDirectory
    from kimagenet.schedule import Schedule
    from kimagenet.training.feed import Feed, open_feed
    from kimagenet.training.loop import Loop
    from kimagenet.training.mixing import MixSpec
    from kimagenet.training.strategy import choose_strategy

__all__ = [
    "Feed",
    "Loop",
    "MixSpec",
    "Recipe",
    "RunDirectory",
    "Schedule",
    "choose_strategy",
    "ensure_demo",
    "models",
    "open_feed",
    "optim",
]

_PACKAGES = ("models", "optim")
_MODULES = {
    "Feed": "kimagenet.training.feed",
    "Loop": "kimagenet.training.loop",
    "MixSpec": "kimagenet.training.mixing",
    "Recipe": "kimagenet.recipe",
    "RunDirectory": "kimagenet.runs.directory",
    "Schedule": "kimagenet.schedule",
    "choose_strategy": "kimagenet.training.strategy",
    "ensure_demo": "kimagenet.demo",
    "open_feed": "kimagenet.training.feed",
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
