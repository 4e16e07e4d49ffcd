"""EfficientNet-B4 (Tan & Le 2019, arXiv 1905.11946). Its own image size is 380; keras_imagenet fed it 224.

    python -m kimagenet.train --recipe efficientnet_b4 --dataset-dir DIR         # no figure
    python -m kimagenet.train --recipe efficientnet_b4_modern --dataset-dir DIR  # torchvision's recipe: no figure

Top-1 on ImageNet as its source reports it; none of these figures was measured here.

keras_imagenet has no recipe for it: efficientnet_b4 is the recipe of efficientnet_b0 with the paper's dropout of 0.4.
The paper reports 82.9% for its own training with RMSProp and AutoAugment.
"""

from typing import TYPE_CHECKING

from kimagenet.models._recipes import NO_FIGURE, NOT_IN_KERAS_IMAGENET, Reported, modern, original

if TYPE_CHECKING:
    import keras

RECIPES = {
    "efficientnet_b4": original(
        "efficientnet_b4",
        optimizer="sgd",
        batch_size=16,
        dropout_rate=0.4,
        weight_decay=3e-5,
        final_lr=1e-4,
        epochs=60,
    ),
    "efficientnet_b4_modern": modern("efficientnet_b4", image_size=380, batch_size=32, iter_size=32, dropout_rate=0.4),
}
REPORTED = {
    "efficientnet_b4": Reported(None, NOT_IN_KERAS_IMAGENET),
    "efficientnet_b4_modern": Reported(None, NO_FIGURE + "; arXiv 1905.11946 has 0.829 with RMSProp and AutoAugment"),
}


def build(num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """19,466,816 parameters at 1000 classes."""
    from kimagenet.models._efficientnet import efficientnet

    return efficientnet("efficientnet_b4", 1.4, 1.8, num_classes, image_size, dropout_rate)
