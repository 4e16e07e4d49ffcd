"""Inception v2 or BN-Inception (Ioffe & Szegedy 2015, arXiv 1502.03167), with the widths of TF-slim.

    python -m kimagenet.train --recipe inception_v2 --dataset-dir DIR         # keras_imagenet: 72.34%
    python -m kimagenet.train --recipe inception_v2_modern --dataset-dir DIR  # torchvision's recipe: no figure

Top-1 on ImageNet as its source reports it; none of these figures was measured here.

Two differences from TF-slim: the stem is a plain 7×7 convolution, and block 5c pools by average.
"""

from typing import TYPE_CHECKING

from kimagenet.models._recipes import KERAS_IMAGENET, NO_FIGURE, Reported, modern, original

if TYPE_CHECKING:
    import keras

RECIPES = {
    "inception_v2": original("inception_v2", batch_size=32, dropout_rate=0.4),
    "inception_v2_modern": modern("inception_v2", dropout_rate=0.2),
}
REPORTED = {
    "inception_v2": Reported(0.7234, KERAS_IMAGENET),
    "inception_v2_modern": Reported(None, NO_FIGURE),
}


def build(num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """11,214,888 parameters at 1000 classes."""
    from kimagenet.models._inception import mixed, mixed_stride_2
    from kimagenet.models._layers import cbr, classifier, image_input, max_pool

    inputs = image_input(image_size)
    x = cbr(inputs, 64, 7, 2, name="conv_1a")
    x = max_pool(x, name="pool_2a")
    x = cbr(x, 64, 1, name="conv_2b")
    x = cbr(x, 192, 3, name="conv_2c")
    x = max_pool(x, name="pool_3a")
    x = mixed(x, 64, (64, 64), (64, 96), 32, name="mixed_3b")
    x = mixed(x, 64, (64, 96), (64, 96), 64, name="mixed_3c")
    x = mixed_stride_2(x, (128, 160), (64, 96), name="mixed_4a")
    x = mixed(x, 224, (64, 96), (96, 128), 128, name="mixed_4b")
    x = mixed(x, 192, (96, 128), (96, 128), 128, name="mixed_4c")
    x = mixed(x, 160, (128, 160), (128, 160), 96, name="mixed_4d")
    x = mixed(x, 96, (128, 192), (160, 192), 96, name="mixed_4e")
    x = mixed_stride_2(x, (128, 192), (192, 256), name="mixed_5a")
    x = mixed(x, 352, (192, 320), (160, 224), 128, name="mixed_5b")
    x = mixed(x, 352, (192, 320), (192, 224), 128, name="mixed_5c")
    return classifier(inputs, x, num_classes, dropout_rate, "inception_v2")
