"""EfficientNet-B0 (Tan & Le 2019, arXiv 1905.11946).

    python -m kimagenet.train --recipe efficientnet_b0 --dataset-dir DIR         # keras_imagenet: 73.18%
    python -m kimagenet.train --recipe efficientnet_b0_modern --dataset-dir DIR  # torchvision's recipe: no figure

Top-1 on ImageNet as its source reports it; none of these figures was measured here.

The paper reports 77.1% for its own training with RMSProp and AutoAugment.
"""

from typing import TYPE_CHECKING

from kimagenet.models._recipes import KERAS_IMAGENET, NO_FIGURE, Reported, modern, original

if TYPE_CHECKING:
    import keras

RECIPES = {
    "efficientnet_b0": original(
        "efficientnet_b0",
        optimizer="sgd",
        batch_size=16,
        dropout_rate=0.2,
        weight_decay=3e-5,
        final_lr=1e-4,
        epochs=60,
    ),
    "efficientnet_b0_modern": modern("efficientnet_b0", dropout_rate=0.2),
}
REPORTED = {
    "efficientnet_b0": Reported(0.7318, KERAS_IMAGENET),
    "efficientnet_b0_modern": Reported(None, NO_FIGURE + "; arXiv 1905.11946 has 0.771 with RMSProp and AutoAugment"),
}


def build(num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """5,330,564 parameters at 1000 classes."""
    from kimagenet.models._efficientnet import efficientnet

    return efficientnet("efficientnet_b0", 1.0, 1.0, num_classes, image_size, dropout_rate)
