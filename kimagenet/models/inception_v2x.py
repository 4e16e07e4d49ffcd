"""A variant of Inception v2 from keras_imagenet.

    python -m kimagenet.train --recipe inception_v2x --dataset-dir DIR         # keras_imagenet: no figure
    python -m kimagenet.train --recipe inception_v2x_modern --dataset-dir DIR  # torchvision's recipe: no figure

Top-1 on ImageNet as its source reports it; none of these figures was measured here.

Two blocks moved from stage 4 to stage 3, and a strided convolution replaces the second max pool.
"""

from typing import TYPE_CHECKING

from kimagenet.models._recipes import KERAS_IMAGENET, NO_FIGURE, Reported, modern, original

if TYPE_CHECKING:
    import keras

RECIPES = {
    "inception_v2x": original("inception_v2x", batch_size=64, dropout_rate=0.4),
    "inception_v2x_modern": modern("inception_v2x", dropout_rate=0.2),
}
REPORTED = {
    "inception_v2x": Reported(None, KERAS_IMAGENET),
    "inception_v2x_modern": Reported(None, NO_FIGURE),
}


def build(num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """10,570,536 parameters at 1000 classes."""
    from kimagenet.models._inception import mixed, mixed_stride_2
    from kimagenet.models._layers import cbr, classifier, image_input, max_pool

    inputs = image_input(image_size)
    x = cbr(inputs, 64, 7, 2, name="conv_1a")
    x = max_pool(x, name="pool_2a")
    x = cbr(x, 64, 1, name="conv_2b")
    x = cbr(x, 128, 3, name="conv_2c")
    x = cbr(x, 192, 3, 2, name="conv_3a")
    x = mixed(x, 64, (64, 64), (64, 96), 32, name="mixed_3b")
    x = mixed(x, 64, (64, 80), (64, 96), 48, name="mixed_3c")
    x = mixed(x, 64, (64, 96), (64, 96), 64, name="mixed_3d")
    x = mixed(x, 64, (64, 128), (64, 128), 64, name="mixed_3e")
    x = mixed_stride_2(x, (128, 160), (64, 96), name="mixed_4a")
    x = mixed(x, 192, (96, 128), (96, 128), 128, name="mixed_4b")
    x = mixed(x, 96, (128, 192), (160, 192), 96, name="mixed_4c")
    x = mixed_stride_2(x, (128, 192), (192, 256), name="mixed_5a")
    x = mixed(x, 352, (192, 320), (160, 224), 128, name="mixed_5b")
    x = mixed(x, 352, (192, 320), (192, 224), 128, name="mixed_5c")
    return classifier(inputs, x, num_classes, dropout_rate, "inception_v2x")
