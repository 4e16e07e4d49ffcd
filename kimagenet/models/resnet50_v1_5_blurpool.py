"""ResNet-50, version 1.5, with a blur before each stride (BlurPool, Zhang 2019, arXiv 1904.11486), as FFCV trains it.

    python -m kimagenet.train --recipe resnet50_v1_5_blurpool --dataset-dir DIR  # torchvision's recipe: no figure

FFCV's figures (78.4% in 88 epochs) are for images that grow during the training, which this recipe leaves out.
"""

from typing import TYPE_CHECKING

from kimagenet.models._recipes import NO_FIGURE, Reported, first_torchvision

if TYPE_CHECKING:
    import keras

RECIPES = {"resnet50_v1_5_blurpool": first_torchvision("resnet50_v1_5_blurpool")}
REPORTED = {"resnet50_v1_5_blurpool": Reported(None, NO_FIGURE)}


def build(num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """The parameters of resnet50_v1_5: a blur has none."""
    from kimagenet.models._resnet import resnet50_v1_5

    return resnet50_v1_5("resnet50_v1_5_blurpool", num_classes, image_size, dropout_rate, blur=True)
