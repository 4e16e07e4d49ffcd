"""What the model files say beside their build function: recipes and the accuracy somebody reported for them."""

from dataclasses import dataclass
from typing import Any

from kimagenet.recipe import Recipe
from pipelines.errors import UserError

KERAS_IMAGENET = "keras_imagenet (train_new.sh; not re-run here)"
NOT_IN_KERAS_IMAGENET = "none: keras_imagenet has no recipe; this default is efficientnet_b0's"


@dataclass(frozen=True)
class Reported:
    """The top-1 accuracy (a share, ImageNet validation) that `source` reports for a recipe; None: it reports none."""

    top1: float | None
    source: str

    def __post_init__(self) -> None:
        if self.top1 is not None and not 0 < self.top1 < 1:
            raise UserError(f"reported: top1 is a share in (0, 1), not {self.top1}")
        if not self.source:
            raise UserError("reported: the source of the figure is missing")


def original(model: str, **changes: Any) -> Recipe:
    """A recipe of keras_imagenet's train_new.sh: what its models have in common, and `changes`.

    Adam's epsilon of 0.1 and evaluation on the whole shorter side (crop_ratio 1) are the original's too.
    """
    common = Recipe(
        model=model,
        lr_sched="exp",
        initial_lr=1e-2,
        final_lr=1e-5,
        weight_decay=2e-4,
        epsilon=1e-1,
        epochs=80,
        crop_ratio=1.0,
    )
    return common.replace(**changes)
