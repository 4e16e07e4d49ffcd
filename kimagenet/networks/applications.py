"""The networks of keras.applications by name, "keras:MobileNetV3Small", with the range of their input.

Imports Keras only to build.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipelines.errors import UserError, did_you_mean, first_line

if TYPE_CHECKING:
    import keras

PREFIX = "keras:"


class Application(NamedTuple):
    """A network of keras.applications.

    Attributes:
        input_range: what it takes, a name of `kimagenet.networks.input_range.RANGES`.
        weights: the name of the file with its ImageNet weights, without its head.
        least_size: the smallest height and width of its input, pixels.
    """

    input_range: str
    weights: str
    least_size: int = 32


_FILE_SIZE = 224  # pixels: MobileNets have a file for each of some sizes
_OLD = "weights_tf_dim_ordering_tf_kernels"
APPLICATIONS = {
    **{
        f"ConvNeXt{size}": Application("0..255", f"convnext_{size.lower()}_notop.h5")
        for size in ("Tiny", "Small", "Base", "Large", "XLarge")
    },
    **{f"DenseNet{n}": Application("torch", f"densenet{n}_{_OLD}_notop.h5") for n in (121, 169, 201)},
    **{f"EfficientNetB{n}": Application("0..255", f"efficientnetb{n}_notop.h5") for n in range(8)},
    **{
        f"EfficientNetV2{size}": Application("0..255", f"efficientnetv2-{size.lower()}_notop.h5")
        for size in ("B0", "B1", "B2", "B3", "S", "M", "L")
    },
    "InceptionResNetV2": Application("tf", f"inception_resnet_v2_{_OLD}_notop.h5", 75),
    "InceptionV3": Application("tf", f"inception_v3_{_OLD}_notop.h5", 75),
    "MobileNet": Application("tf", "mobilenet_1_0_224_tf_no_top.h5"),
    "MobileNetV2": Application("tf", f"mobilenet_v2_{_OLD}_1.0_224_no_top.h5"),
    "MobileNetV3Large": Application("0..255", "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5"),
    "MobileNetV3Small": Application("0..255", "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"),
    "NASNetLarge": Application("tf", "nasnet_large_no_top.h5"),
    "NASNetMobile": Application("tf", "nasnet_mobile_no_top.h5"),
    **{f"ResNet{n}": Application("caffe", f"resnet{n}_{_OLD}_notop.h5") for n in (50, 101, 152)},
    **{f"ResNet{n}V2": Application("tf", f"resnet{n}v2_{_OLD}_notop.h5") for n in (50, 101, 152)},
    **{f"VGG{n}": Application("caffe", f"vgg{n}_{_OLD}_notop.h5") for n in (16, 19)},
    "Xception": Application("tf", f"xception_{_OLD}_notop.h5", 71),
}

# By the name of our network: the one of keras.applications whose layers have the same names, weights and results.
SOURCES = {
    "efficientnet_b0": "EfficientNetB0",
    "efficientnet_b1": "EfficientNetB1",
    "efficientnet_b4": "EfficientNetB4",
    "mobilenet_v2": "MobileNetV2",
    "resnet50": "ResNet50",
}


def is_application(model: str) -> bool:
    """Whether a model's name means a network of keras.applications."""
    return model.startswith(PREFIX)


def check_name(model: str) -> None:
    """Checks a name that begins with "keras:".

    Args:
        model: the name.

    Raises:
        UserError: there is no such network.
    """
    name = model.removeprefix(PREFIX)
    if name not in APPLICATIONS:
        known = ", ".join(APPLICATIONS)
        remedy = did_you_mean(name, APPLICATIONS) or f"there are {known}"
        raise UserError(f"{model}: keras.applications has no such network", remedy=remedy)


def check_pretrained(model: str) -> None:
    """Checks that Keras has ImageNet weights for a model.

    Args:
        model: one of `kimagenet.models.names()`, or a name that begins with "keras:".

    Raises:
        UserError: it has none.
    """
    if not is_application(model) and model not in SOURCES:
        known = ", ".join(SOURCES)
        remedy = f"there are weights for {known}, and for all networks of keras.applications, as {PREFIX}ResNet50V2"
        raise UserError(f"{model}: Keras has no ImageNet weights for it", remedy=remedy, setting="pretrained")


def build_features(name: str, image_size: int, is_pretrained: bool) -> "keras.Model":
    """Builds a network without its head. Keras fetches ImageNet weights into its cache, unless they are there.

    Args:
        name: of the network, without "keras:".
        image_size: height and width of its input, pixels.
        is_pretrained: whether it gets ImageNet weights.

    Returns:
        A model of images in the network's own range that returns feature maps [B, H, W, C].

    Raises:
        UserError: it cannot have this size, or the weights cannot be fetched.
    """
    import keras

    from kimagenet.networks.rebuild import rebuilt

    application = APPLICATIONS[name]
    if image_size < application.least_size:
        what = f"{PREFIX}{name}: takes images of at least {application.least_size} pixels, not {image_size}"
        raise UserError(what, setting="image_size")
    constructor = getattr(keras.applications, name)
    if not is_pretrained:
        return constructor(include_top=False, weights=None, input_shape=(image_size, image_size, 3))
    size = _FILE_SIZE if name in ("MobileNet", "MobileNetV2") else image_size
    try:
        features = constructor(include_top=False, weights="imagenet", input_shape=(size, size, 3))
    # Keras raises any exception for a download or a file that fails.
    except Exception as error:
        what = f"the ImageNet weights of {name} cannot be read ({first_line(error)})"
        path = Path(os.environ.get("KERAS_HOME", "~/.keras"), "models", application.weights)
        raise UserError(what, path=path, remedy="without a network, put this file there") from None
    return features if size == image_size else rebuilt(features, image_size)
