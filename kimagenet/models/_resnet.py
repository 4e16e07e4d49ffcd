"""ResNet-50, version 1.5, as torchvision and most published accuracies have it. Imports Keras: import it in `build`.

Against version 1, the 3×3 convolution of a block has the stride, not the first 1×1, and convolutions have no biases.
Layers have the names of keras.applications' ResNet50. Padding is the same on both sides, as in torchvision, so its
weights give the same outputs.
"""

import keras
from keras import layers

from kimagenet.models._layers import Tensor, classifier, image_input, relu

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # width of the 3×3 convolutions, blocks


def resnet50_v1_5(
    name: str, num_classes: int, image_size: int, dropout_rate: float, *, blur: bool = False
) -> keras.Model:
    """The model.

    Args:
        name: of the model.
        num_classes: width of the last layer.
        image_size: pixels.
        dropout_rate: before the last layer.
        blur: whether a 3×3 binomial filter comes before each strided convolution of the blocks (BlurPool, Zhang 2019,
            arXiv 1904.11486), as in FFCV's ResNets.
    """
    inputs = image_input(image_size)
    x = _conv_norm(inputs, 64, 7, 2, "conv1")
    x = relu(x, "conv1")
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)  # nothing is negative here
    x = layers.MaxPooling2D(3, 2, name="pool1_pool")(x)
    for number, (width, blocks) in enumerate(STAGES, start=2):
        for block in range(1, blocks + 1):
            stride = 2 if block == 1 and number > 2 else 1
            x = _bottleneck(x, width, stride, blur=blur, project=block == 1, name=f"conv{number}_block{block}")
    return classifier(inputs, x, num_classes, dropout_rate, name)


def _bottleneck(x: Tensor, width: int, stride: int, *, blur: bool, project: bool, name: str) -> Tensor:
    shortcut = x
    if project:
        shortcut = _conv_norm(_blurred(x, stride, f"{name}_0", blur=blur), 4 * width, 1, stride, f"{name}_0")
    x = relu(_conv_norm(x, width, 1, 1, f"{name}_1"), f"{name}_1")
    x = relu(_conv_norm(_blurred(x, stride, f"{name}_2", blur=blur), width, 3, stride, f"{name}_2"), f"{name}_2")
    x = _conv_norm(x, 4 * width, 1, 1, f"{name}_3")
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.ReLU(name=f"{name}_out")(x)


def _blurred(x: Tensor, stride: int, name: str, *, blur: bool) -> Tensor:
    """Weights (1, 2, 1) in both directions, in front of a stride: two means of 2×2, so a saved model needs no layer."""
    if not blur or stride == 1:
        return x
    x = layers.ZeroPadding2D(1, name=f"{name}_blur_pad")(x)
    x = layers.AveragePooling2D(2, 1, name=f"{name}_blur_a")(x)
    return layers.AveragePooling2D(2, 1, name=f"{name}_blur_b")(x)


def _conv_norm(x: Tensor, filters: int, kernel: int, stride: int, name: str) -> Tensor:
    """Convolution and batch normalization, as torchvision makes and initializes them."""
    if kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    init = keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")
    x = layers.Conv2D(filters, kernel, stride, use_bias=False, kernel_initializer=init, name=f"{name}_conv")(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
