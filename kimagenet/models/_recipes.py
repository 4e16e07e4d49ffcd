"""What model files need for their recipes and for the accuracies that are reported for them."""

from dataclasses import dataclass
from typing import Any

from kimagenet.recipe import Recipe
from pipelines.errors import UserError

KERAS_IMAGENET = "keras_imagenet (train_new.sh; not re-run here)"
NOT_IN_KERAS_IMAGENET = "none: keras_imagenet has no recipe; this default is efficientnet_b0's"

# What torchvision's recipe has and `modern` leaves out. No recipe named _modern was run on ImageNet here.
_WITHOUT = (
    "with TrivialAugment, repeated augmentation and training at fewer pixels than testing, which are left out here"
)
NOT_RUN_HERE = "(not re-run here)"
NO_FIGURE = "none known for exactly this network; torchvision's recipe for ResNet-50 (not run here)"


def torchvision(what: str) -> str:
    """The source of a figure that torchvision reports for its recipe."""
    return f"torchvision, {what}; {_WITHOUT} {NOT_RUN_HERE}"


@dataclass(frozen=True)
class Reported:
    """The accuracy that is reported for a recipe.

    Attributes:
        top1: on the validation images of ImageNet, in (0, 1); None if there is no figure.
        source: who reports it.

    Raises:
        UserError: a field is wrong.
    """

    top1: float | None
    source: str

    def __post_init__(self) -> None:
        if self.top1 is not None and not 0 < self.top1 < 1:
            raise UserError(f"the reported top1 must be in (0, 1), not {self.top1}")
        if not self.source:
            raise UserError("the source of a reported figure is missing")


def original(model: str, **changes: Any) -> Recipe:
    """A recipe of keras_imagenet's train_new.sh.

    Adam's epsilon of 0.1 and the evaluation on the whole shorter side (crop_ratio 1) are also the original's.

    Args:
        model: the name of the model.
        changes: the fields that differ from model to model.
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


def first_torchvision(model: str, **changes: Any) -> Recipe:
    """torchvision's first recipe for ResNets, which gave the IMAGENET1K_V1 weights.

    Source: github.com/pytorch/vision/tree/main/references/classification, for 8 × 32 images: SGD with momentum 0.9,
    rate 0.1, a tenth of it after every 30 of 90 epochs, random resized crop and flip, evaluation on 224 of 256 pixels.
    Its weight decay of 1e-4 on all parameters is a gradient of 1e-4·w, so an L2 penalty of 5e-5·Σw², here on kernels.

    Args:
        model: the name of the model.
        changes: the fields that differ from model to model.
    """
    common = Recipe(
        model=model,
        batch_size=64,
        iter_size=4,
        epochs=90,
        optimizer="sgd",
        momentum=0.9,
        weight_decay=5e-5,
        lr_sched="step",
        initial_lr=0.1,
        final_lr=0.0,
        step_epochs=30,
        step_factor=0.1,
        lr_reference_batch=256,
        augment="standard",
        crop_ratio=224 / 256,
    )
    return common.replace(**changes)


def modern(model: str, **changes: Any) -> Recipe:
    """torchvision's recipe of 2021 for training from scratch.

    Source: github.com/pytorch/vision/issues/3995, for 8 × 128 images: SGD, rate 0.5, 5 epochs of warm-up and a cosine
    to 0 over 600 epochs, label smoothing 0.1, mixup 0.2 or CutMix 1.0, random erasing 0.1, a moving average of the
    weights (there 0.99998 every 32 steps, which is about 0.99997 every step), decay of kernels only, evaluation on 224
    of 232 pixels. Its weight decay of 2e-5 is a gradient of 2e-5·w, which is an L2 penalty of 1e-5·Σw². TrivialAugment,
    repeated augmentation and the 176 pixels of its training are left out.

    Args:
        model: the name of the model.
        changes: the fields that differ from model to model.
    """
    common = Recipe(
        model=model,
        batch_size=128,
        iter_size=8,
        epochs=600,
        label_smoothing=0.1,
        optimizer="sgd",
        momentum=0.9,
        weight_decay=1e-5,
        ema=0.99997,
        lr_sched="cosine",
        initial_lr=0.5,
        final_lr=0.0,
        warmup_epochs=5,
        lr_reference_batch=1024,
        augment="standard",
        mixup=0.2,
        cutmix=1.0,
        erase=0.1,
        crop_ratio=224 / 232,
    )
    return common.replace(**changes)
