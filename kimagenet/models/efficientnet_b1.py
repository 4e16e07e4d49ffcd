"""EfficientNet-B1 (Tan & Le 2019, arXiv 1905.11946). Its own image size is 240; keras_imagenet fed it 224.

    python -m kimagenet.train --recipe efficientnet_b1 --dataset-dir DIR         # no figure
    python -m kimagenet.train --recipe efficientnet_b1_modern --dataset-dir DIR  # torchvision: 79.84%, a tuned variant

Top-1 on ImageNet as its source reports it; none of these figures was measured here.

keras_imagenet has no recipe for it: efficientnet_b1 is the recipe of efficientnet_b0.
"""

from typing import TYPE_CHECKING

from kimagenet.models._recipes import NOT_IN_KERAS_IMAGENET, Reported, modern, original, torchvision

if TYPE_CHECKING:
    import keras

RECIPES = {
    "efficientnet_b1": original(
        "efficientnet_b1",
        optimizer="sgd",
        batch_size=16,
        dropout_rate=0.2,
        weight_decay=3e-5,
        final_lr=1e-4,
        epochs=60,
    ),
    "efficientnet_b1_modern": modern("efficientnet_b1", image_size=240, crop_ratio=240 / 255, dropout_rate=0.2),
}
REPORTED = {
    "efficientnet_b1": Reported(None, NOT_IN_KERAS_IMAGENET),
    "efficientnet_b1_modern": Reported(
        0.79838, torchvision("EfficientNet_B1_Weights.IMAGENET1K_V2 (pull/5033), a tuned variant")
    ),
}


def build(num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """7,856,232 parameters at 1000 classes."""
    from kimagenet.models._efficientnet import efficientnet

    return efficientnet("efficientnet_b1", 1.0, 1.1, num_classes, image_size, dropout_rate)
