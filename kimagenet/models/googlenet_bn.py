"""GoogLeNet (Szegedy et al. 2014, arXiv 1409.4842, table 1) with batch normalization after each convolution.

    python -m kimagenet.train --recipe googlenet_bn --dataset-dir DIR         # keras_imagenet: 70.91%
    python -m kimagenet.train --recipe googlenet_bn_modern --dataset-dir DIR  # torchvision's recipe: no figure

Top-1 on ImageNet as its source reports it; none of these figures was measured here.

It has no auxiliary heads and no local response normalization. The pool in a block is an average (the paper: a maximum).
"""

from typing import TYPE_CHECKING, Any

from kimagenet.models._recipes import KERAS_IMAGENET, NO_FIGURE, Reported, modern, original

if TYPE_CHECKING:
    import keras

RECIPES = {
    "googlenet_bn": original("googlenet_bn", batch_size=32, dropout_rate=0.4, epochs=60),
    "googlenet_bn_modern": modern("googlenet_bn", dropout_rate=0.2),
}
REPORTED = {
    "googlenet_bn": Reported(0.7091, KERAS_IMAGENET),
    "googlenet_bn_modern": Reported(None, NO_FIGURE),
}

# Widths of each block: 1×1 | 3×3 reduce, 3×3 | 5×5 reduce, 5×5 | pool projection. There is a max pool between stages.
STAGES = (
    {
        "3a": (64, 96, 128, 16, 32, 32),
        "3b": (128, 128, 192, 32, 96, 64),
    },
    {
        "4a": (192, 96, 208, 16, 48, 64),
        "4b": (160, 112, 224, 24, 64, 64),
        "4c": (128, 128, 256, 24, 64, 64),
        "4d": (112, 144, 288, 32, 64, 64),
        "4e": (256, 160, 320, 32, 128, 128),
    },
    {
        "5a": (256, 160, 320, 32, 128, 128),
        "5b": (384, 192, 384, 48, 128, 128),
    },
)


def build(num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """7,020,392 parameters at 1000 classes."""
    from kimagenet.models._layers import cbr, classifier, image_input, max_pool

    inputs = image_input(image_size)
    x = cbr(inputs, 64, 7, 2, name="conv1")
    x = max_pool(x, name="pool1")
    x = cbr(x, 64, 1, name="conv2_reduce")
    x = cbr(x, 192, 3, name="conv2")
    for number, blocks in enumerate(STAGES, start=2):
        x = max_pool(x, name=f"pool{number}")
        for block, widths in blocks.items():
            x = _inception(x, widths, f"inception_{block}")
    return classifier(inputs, x, num_classes, dropout_rate, "googlenet_bn")


def _inception(x: Any, widths: tuple[int, ...], name: str) -> Any:
    """Four branches side by side: 1×1; 3×3; a true 5×5; average pool and projection."""
    from kimagenet.models._layers import avg_pool, cbr, concat

    one, reduce_3x3, three, reduce_5x5, five, projection = widths
    a = cbr(x, one, 1, name=f"{name}_1x1")
    b = cbr(x, reduce_3x3, 1, name=f"{name}_3x3_reduce")
    b = cbr(b, three, 3, name=f"{name}_3x3")
    c = cbr(x, reduce_5x5, 1, name=f"{name}_5x5_reduce")
    c = cbr(c, five, 5, name=f"{name}_5x5")
    d = avg_pool(x, name=f"{name}_pool")
    d = cbr(d, projection, 1, name=f"{name}_pool_proj")
    return concat([a, b, c, d], name=f"{name}_output")
