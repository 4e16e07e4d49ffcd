"""A small network for a first run without ImageNet. It is no ImageNet model, and keras_imagenet does not have it.

    python -m kimagenet.train --recipe demo --dataset-dir DIR  # no figure

Made for 64 to 96 pixels, about a dozen classes and two CPU cores.
"""

from typing import TYPE_CHECKING

from kimagenet.models._recipes import Reported
from kimagenet.recipe import Recipe

if TYPE_CHECKING:
    import keras

RECIPES = {
    "demo": Recipe(
        model="demo",
        image_size=64,
        batch_size=32,
        epochs=18,
        optimizer="adam",
        epsilon=1e-7,
        weight_decay=1e-4,
        lr_sched="cosine",
        initial_lr=2e-3,
        final_lr=0.0,
        augment="full",
    ),
}
REPORTED = {
    "demo": Reported(None, "none: not an ImageNet model"),
}

# Kernel 3×3: width, stride.
CONVOLUTIONS = ((16, 2), (32, 2), (64, 1), (64, 2), (96, 1), (96, 2), (128, 1))


def build(num_classes: int = 1000, image_size: int = 96, dropout_rate: float = 0.0) -> "keras.Model":
    """312,700 parameters at 12 classes; 34 million multiply-adds at 96 pixels."""
    from keras import layers

    from kimagenet.models._layers import classifier, conv, image_input, relu

    x = inputs = image_input(image_size)
    for number, (width, stride) in enumerate(CONVOLUTIONS, start=1):
        name = f"conv_{number}"
        x = conv(x, width, 3, stride, name=name)
        # The run has some hundred steps: with Keras' default of 0.99, half of the initial statistics would remain.
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        x = relu(x, name)
    return classifier(inputs, x, num_classes, dropout_rate, "demo")
