"""ResNet-50, version 1 (He et al. 2015, arXiv 1512.03385): the layers of keras.applications with the common head.

    python -m kimagenet.train --recipe resnet50 --dataset-dir DIR         # keras_imagenet: no figure
    python -m kimagenet.train --recipe resnet50_modern --dataset-dir DIR  # torchvision: 80.86%, of version 1.5

Top-1 on ImageNet as its source reports it; none of these figures was measured here.

As in keras.applications, the convolutions have biases, and the first 1×1 convolution of a stage has its stride.
"""

from typing import TYPE_CHECKING

from kimagenet.models._recipes import KERAS_IMAGENET, Reported, modern, original, torchvision

if TYPE_CHECKING:
    import keras

RECIPES = {
    "resnet50": original("resnet50", batch_size=16, dropout_rate=0.5),
    "resnet50_modern": modern("resnet50"),
}
REPORTED = {
    "resnet50": Reported(None, KERAS_IMAGENET),
    "resnet50_modern": Reported(0.80858, torchvision("ResNet50_Weights.IMAGENET1K_V2 (issues/3995), of v1.5")),
}


def build(num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """25,636,712 parameters at 1000 classes."""
    import keras

    from kimagenet.models._layers import classifier, image_input

    inputs = image_input(image_size)
    backbone = keras.applications.ResNet50(include_top=False, weights=None, input_tensor=inputs)
    return classifier(inputs, backbone.output, num_classes, dropout_rate, "resnet50")
