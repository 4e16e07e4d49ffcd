"""ImageNet weights of keras.applications for those of our networks that have the same layers. Imports Keras."""

import keras

from kimagenet import models
from kimagenet.networks.applications import APPLICATIONS, SOURCES, build_features, check_pretrained
from kimagenet.networks.input_range import RANGES, scaling_of_first_layers, with_range
from pipelines.errors import UserError


def build(name: str, num_classes: int, image_size: int, dropout_rate: float = 0.0) -> keras.Model:
    """Builds one of our networks with ImageNet weights and a new head.

    Args:
        name: one of `kimagenet.models.names()`.
        num_classes: width of the last layer.
        image_size: height and width of the input, pixels.
        dropout_rate: before the last layer.

    Returns:
        A model of images in -1 to 1; it scales them to the range that its weights were trained with.

    Raises:
        UserError: there are no weights for this network, or they cannot be fetched.
    """
    check_pretrained(name)
    return _filled(models.build(name, num_classes, image_size, dropout_rate), SOURCES[name], image_size)


def _filled(model: keras.Model, source_name: str, image_size: int) -> keras.Model:
    """Copies the ImageNet weights of a network of keras.applications into ours.

    Args:
        model: our network.
        source_name: one of `APPLICATIONS`, with the same layers.
        image_size: of both, pixels.

    Returns:
        The model for images in -1 to 1, whose features are those of the source.

    Raises:
        UserError: the layers are not the same.
    """
    source = build_features(source_name, image_size, True)
    scales_itself = APPLICATIONS[source_name].input_range == "0..255"
    taken = scaling_of_first_layers(source) if scales_itself else RANGES[APPLICATIONS[source_name].input_range]
    given = {
        layer.name: layer
        for layer in source.layers
        if layer.weights and not isinstance(layer, keras.layers.Normalization)
    }
    filling = {layer.name: layer for layer in model.layers if layer.weights and layer.name != "Logits"}
    shapes = [{name: [w.shape for w in layer.weights] for name, layer in part.items()} for part in (given, filling)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{model.name}: its layers are not those of {source_name} in this release of Keras")
    for name, layer in filling.items():
        layer.set_weights(given[name].get_weights())
    return with_range(model, taken)
