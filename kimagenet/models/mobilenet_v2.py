"""MobileNetV2 1.0 (Sandler et al. 2018, arXiv 1801.04381): the layers of keras.applications with the common head.

    python -m kimagenet.train --recipe mobilenet_v2 --dataset-dir DIR         # keras_imagenet: 70.54%
    python -m kimagenet.train --recipe mobilenet_v2_modern --dataset-dir DIR  # torchvision: 72.15%

Top-1 on ImageNet as its source reports it; none of these figures was measured here.
"""

from typing import TYPE_CHECKING

from kimagenet.models._recipes import KERAS_IMAGENET, Reported, modern, original, torchvision

if TYPE_CHECKING:
    import keras

RECIPES = {
    "mobilenet_v2": original("mobilenet_v2", batch_size=64, dropout_rate=0.2, weight_decay=3e-5),
    "mobilenet_v2_modern": modern("mobilenet_v2", dropout_rate=0.2),
}
REPORTED = {
    "mobilenet_v2": Reported(0.7054, KERAS_IMAGENET),
    "mobilenet_v2_modern": Reported(
        0.72154, torchvision("MobileNet_V2_Weights.IMAGENET1K_V2 (github.com/pytorch/vision/pull/5560)")
    ),
}


def build(num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """3,538,984 parameters at 1000 classes."""
    import keras

    from kimagenet.models._layers import classifier, image_input

    inputs = image_input(image_size)
    # With input_tensor alone, keras.applications warns about sizes it has no pretrained weights for.
    shape = (image_size, image_size, 3)
    backbone = keras.applications.MobileNetV2(include_top=False, weights=None, input_tensor=inputs, input_shape=shape)
    return classifier(inputs, backbone.output, num_classes, dropout_rate, "mobilenet_v2")
