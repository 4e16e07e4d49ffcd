"""EfficientNet-B4 (Tan & Le 2019, arXiv 1905.11946). Native size: 380; the original fed it 224.

keras_imagenet has no recipe for it: this one is efficientnet_b0's with the paper's dropout of 0.4."""

from typing import TYPE_CHECKING

from kimagenet.models._recipes import NOT_IN_KERAS_IMAGENET, Reported, original

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
}
REPORTED = {
    "efficientnet_b4": Reported(None, NOT_IN_KERAS_IMAGENET),
}


def build(num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """19,466,816 parameters at 1000 classes."""
    from kimagenet.models._efficientnet import efficientnet

    return efficientnet("efficientnet_b4", 1.4, 1.8, num_classes, image_size, dropout_rate)
