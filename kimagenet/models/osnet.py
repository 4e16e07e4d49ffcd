"""OSNet ×1.0 (Zhou et al. 2019, arXiv 1905.00953) as a classifier: without the 512-d layer of re-identification.

    python -m kimagenet.train --recipe osnet --dataset-dir DIR         # keras_imagenet: 64.74%
    python -m kimagenet.train --recipe osnet_modern --dataset-dir DIR  # torchvision's recipe: no figure

Top-1 on ImageNet as its source reports it; none of these figures was measured here.
"""

from typing import TYPE_CHECKING, Any

from kimagenet.models._recipes import KERAS_IMAGENET, NO_FIGURE, Reported, modern, original

if TYPE_CHECKING:
    import keras

RECIPES = {
    # train_new.sh gives no weight decay here, so train.py's default is used.
    "osnet": original("osnet", batch_size=32, dropout_rate=0.2, weight_decay=1e-5, epochs=60),
    "osnet_modern": modern("osnet", dropout_rate=0.2),
}
REPORTED = {
    "osnet": Reported(0.6474, KERAS_IMAGENET),
    "osnet_modern": Reported(None, NO_FIGURE),
}

STREAMS = 4  # of 1, 2, 3 and 4 light 3×3 convolutions: four sizes of receptive field


def build(num_classes: int = 1000, image_size: int = 224, dropout_rate: float = 0.0) -> "keras.Model":
    """2,440,952 parameters at 1000 classes."""
    from keras import layers

    from kimagenet.models._layers import cbr, classifier, image_input, max_pool

    inputs = image_input(image_size)
    x = cbr(inputs, 64, 7, 2, name="conv_1")
    x = max_pool(x, name="pool_1")
    for stage, width in ((2, 256), (3, 384), (4, 512)):
        x = _bottleneck(x, width, f"stage_{stage}a")
        x = _bottleneck(x, width, f"stage_{stage}b")
        x = cbr(x, width, 1, name=f"stage_{stage}t")
        if stage < 4:
            x = layers.AveragePooling2D(2, 2, padding="valid", name=f"stage_{stage}t_pool")(x)
    return classifier(inputs, x, num_classes, dropout_rate, "osnet")


def _bottleneck(x: Any, filters: int, name: str) -> Any:
    """Adds the gated streams and the shortcut."""
    from keras import layers

    from kimagenet.models._layers import cbr, conv, norm, relu

    width = filters // 4
    shortcut = x
    reduced = cbr(x, width, 1, name=f"{name}_reduce")
    gate = _gate(width, f"{name}_gate")
    streams = []
    for length in range(1, STREAMS + 1):
        stream = reduced
        for position in range(1, length + 1):
            stream = _lite(stream, width, f"{name}_stream{length}_{position}")
        streams.append(layers.Multiply(name=f"{name}_stream{length}_gated")([stream, gate(stream)]))
    x = layers.Add(name=f"{name}_sum")(streams)
    x = norm(conv(x, filters, 1, name=f"{name}_expand"), f"{name}_expand")
    if shortcut.shape[-1] != filters:
        shortcut = norm(conv(shortcut, filters, 1, name=f"{name}_shortcut"), f"{name}_shortcut")
    return relu(layers.Add(name=f"{name}_add")([x, shortcut]), name)


def _lite(x: Any, filters: int, name: str) -> Any:
    """A 3×3 convolution in two: pointwise (linear), then depthwise."""
    from kimagenet.models._layers import conv, depthwise, norm, relu

    x = conv(x, filters, 1, name=f"{name}_pw")
    x = depthwise(x, 3, name=f"{name}_dw")
    return relu(norm(x, name), name)


def _gate(width: int, name: str) -> "keras.Model":
    """One weight in (0, 1) for each channel, from the channel's means.

    It is a nested model, because the four streams of a bottleneck share it. So the L2 penalty leaves it out
    (`l2_kernels`), and its batch normalization has four updates in a step.
    """
    import keras
    from keras import layers

    stream = keras.Input((None, None, width), name="stream")
    x = layers.GlobalAveragePooling2D(name="pool")(stream)
    x = layers.Dense(width // 16, use_bias=False, name="reduce")(x)
    x = layers.BatchNormalization(name="reduce_bn")(x)
    x = layers.ReLU(name="reduce_relu")(x)
    x = layers.Dense(width, activation="sigmoid", name="expand")(x)
    x = layers.Reshape((1, 1, width), name="weights")(x)
    return keras.Model(stream, x, name=name)
