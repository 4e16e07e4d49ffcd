"""ResNet-50, version 1.5 (NVIDIA's and torchvision's): the stride is in the 3×3 convolutions, and nothing has a bias.

    python -m kimagenet.train --recipe resnet50_v1_5 --dataset-dir DIR         # torchvision: 76.13%
    python -m kimagenet.train --recipe resnet50_v1_5_modern --dataset-dir DIR  # torchvision: 80.86%, trained at 176 px

Top-1 on ImageNet as its source reports it; none of these figures was measured here.

What differs from torchvision's first recipe: only kernels decay here. From its second recipe: it trains at 176 pixels,
the recipe here at 224.
"""

from typing import TYPE_CHECKING

from kimagenet.models._recipes import NOT_RUN_HERE, Reported, first_torchvision, modern

if TYPE_CHECKING:
    import keras

RECIPES = {
    "resnet50_v1_5": first_torchvision("resnet50_v1_5"),
    "resnet50_v1_5_modern": modern("resnet50_v1_5", augment="trivial", repeats=4),
}
REPORTED = {
    "resnet50_v1_5": Reported(0.7613, f"torchvision, ResNet50_Weights.IMAGENET1K_V1 {NOT_RUN_HERE}"),
    "resnet50_v1_5_modern": Reported(
        0.80858,
        f"torchvision, ResNet50_Weights.IMAGENET1K_V2 (issues/3995), with training at 176 pixels, which this recipe "
        f"leaves out {NOT_RUN_HERE}",
    ),
}


def build(num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """25,557,032 trainable parameters at 1000 classes."""
    from kimagenet.models._resnet import resnet50_v1_5

    return resnet50_v1_5("resnet50_v1_5", num_classes, image_size, dropout_rate)
