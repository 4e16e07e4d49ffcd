"""Inception blocks whose 3×3 and 5×5 convolutions are depthwise separable, from keras_imagenet.

    python -m kimagenet.train --recipe inception_mobilenet --dataset-dir DIR         # keras_imagenet: no figure
    python -m kimagenet.train --recipe inception_mobilenet_modern --dataset-dir DIR  # torchvision's recipe: no figure

Top-1 on ImageNet as its source reports it; none of these figures was measured here.
"""

from typing import TYPE_CHECKING, Any

from kimagenet.models._recipes import KERAS_IMAGENET, NO_FIGURE, Reported, modern, original

if TYPE_CHECKING:
    import keras

RECIPES = {
    "inception_mobilenet": original("inception_mobilenet", batch_size=64, dropout_rate=0.4),
    "inception_mobilenet_modern": modern("inception_mobilenet", dropout_rate=0.2),
}
REPORTED = {
    "inception_mobilenet": Reported(None, KERAS_IMAGENET),
    "inception_mobilenet_modern": Reported(None, NO_FIGURE),
}

# Widths of each block: 1×1 | 3×3 | 5×5 | pool projection; with stride 2 only 3×3 | 5×5, and the pool passes through.
BLOCKS = {
    "2b": (32, 32, 48, 16),
    "2c": (32, 32, 48, 16),
    "3a": (64, 64),
    "3b": (64, 64, 96, 32),
    "3c": (64, 64, 96, 32),
    "3d": (64, 96, 96, 32),  # 288 channels, not 256: perhaps a mistake, but the original's counts include it
    "4a": (128, 128),
    "4b": (128, 128, 192, 64),
    "4c": (128, 128, 192, 64),
    "4d": (128, 128, 192, 64),
    "5a": (256, 256),
    "5b": (256, 256, 384, 128),
    "5c": (256, 256, 384, 128),
}


def build(num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """4,854,696 parameters at 1000 classes."""
    from kimagenet.models._layers import cbr, classifier, image_input

    inputs = image_input(image_size)
    x = cbr(inputs, 64, 7, 2, name="conv_1a")
    x = cbr(x, 128, 3, 2, name="conv_2a")
    for block, widths in BLOCKS.items():
        mix = _mixed if len(widths) == 4 else _mixed_stride_2
        x = mix(x, widths, f"mixed_{block}")
    return classifier(inputs, x, num_classes, dropout_rate, "inception_mobilenet")


def _mixed(x: Any, widths: tuple[int, ...], name: str) -> Any:
    from kimagenet.models._layers import avg_pool, cbr, concat

    one, three, five, projection = widths
    a = cbr(x, one, 1, name=f"{name}_1x1")
    b = _separable(x, three, 3, 1, f"{name}_3x3")
    c = _separable(x, five, 5, 1, f"{name}_5x5")
    d = avg_pool(x, name=f"{name}_pool")
    d = cbr(d, projection, 1, name=f"{name}_pool_proj")
    return concat([a, b, c, d], name=f"{name}_output")


def _mixed_stride_2(x: Any, widths: tuple[int, ...], name: str) -> Any:
    from kimagenet.models._layers import concat, max_pool

    three, five = widths
    b = _separable(x, three, 3, 2, f"{name}_3x3")
    c = _separable(x, five, 5, 2, f"{name}_5x5")
    d = max_pool(x, name=f"{name}_pool")
    return concat([b, c, d], name=f"{name}_output")


def _separable(x: Any, filters: int, kernel: int, stride: int, name: str) -> Any:
    """Depthwise, then pointwise convolution, each with its own batch normalization and ReLU."""
    from kimagenet.models._layers import cbr, depthwise, norm, relu

    x = depthwise(x, kernel, stride, name=f"{name}_dw")
    x = relu(norm(x, f"{name}_dw"), f"{name}_dw")
    return cbr(x, filters, 1, name=name)
