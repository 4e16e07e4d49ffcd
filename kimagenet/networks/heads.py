"""A new last layer on any network. Imports Keras."""

from pathlib import Path
from typing import NamedTuple

import keras
from keras import layers

from kimagenet.models._layers import head
from kimagenet.networks.rebuild import opened, producer
from pipelines.errors import UserError, did_you_mean

_POOLS = (
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
)


class Ending(NamedTuple):
    """Where a network's features end and its head begins.

    Attributes:
        features: what a new head takes, float [B, C], [B, N, C] or [B, H, W, C].
        last: the layer with the weights of the present head; None: the network ends with its features.
    """

    features: keras.KerasTensor
    last: keras.Layer | None


def has_our_head(model: keras.Model) -> bool:
    """Whether a model ends as those of `kimagenet.models` do."""
    return {"global_pool", "Logits"} <= {layer.name for layer in model.layers}


def find_ending(model: keras.Model) -> Ending | None:
    """Finds the head of a network: its last Dense layer, or 1×1 convolution of one pixel, with all that follows.

    Only layers without weights may follow it, such as Softmax, Activation, Dropout or Flatten.

    Args:
        model: a model whose nested models are `opened` at its end.

    Returns:
        Where the head begins. A network that ends in feature maps or in a global pool has no head. None if the network
        ends in another way.
    """
    tensor = model.outputs[0]
    if len(tensor.shape) == 4:
        return Ending(tensor, None)
    while True:
        operation, source = producer(tensor)
        if source is None:
            return None
        if _is_classifier(operation, source):
            return Ending(source, operation)
        if getattr(operation, "weights", []):
            return None
        if isinstance(operation, _POOLS):
            return Ending(tensor, None) if tensor is model.outputs[0] else None
        tensor = source


def with_new_head(
    model: keras.Model, num_classes: int, dropout_rate: float, head_on: str = "", source: Path | str = ""
) -> keras.Model:
    """The network with a new head: a global pool if the features are not pooled, dropout, and the layer `Logits`.

    The other layers stay the same objects. A Dropout of the network right before its head is kept, unless there is a
    new one.

    Args:
        model: the network.
        num_classes: width of the new last layer.
        dropout_rate: dropout before it; 0: none.
        head_on: the name of the layer whose output gets the head; "": found by `find_ending`.
        source: what the network is, for messages.

    Raises:
        UserError: there is no such layer, or the head is not found.
    """
    model = opened(model)
    if head_on:
        features = _output_of(model, head_on, source)
    elif has_our_head(model):
        features = _output_of(model, "global_pool", source)
    elif ending := find_ending(model):
        features = ending.features
        before, earlier = producer(features)
        if dropout_rate and isinstance(before, layers.Dropout) and earlier is not None:
            features = earlier
    else:
        what = "its head cannot be replaced, because it does not end in a Dense layer"
        raise UserError(what, path=source, remedy="name the layer that gets the new head", setting="head_on")
    pools = {4: layers.GlobalAveragePooling2D, 3: layers.GlobalAveragePooling1D}
    if (rank := len(features.shape)) in pools:
        features = pools[rank](name="global_pool")(features)
    elif rank != 2:
        what = f"the output of {head_on} has the shape {features.shape}, which no head can take"
        raise UserError(what, path=source, setting="head_on")
    is_taken = any(layer.name == "dropout" for layer in keras.Model(model.inputs[0], features).layers)
    name = "head_dropout" if is_taken else "dropout"
    return head(model.inputs[0], features, num_classes, dropout_rate, model.name, dropout_name=name)


def _is_classifier(operation: keras.Operation, source: keras.KerasTensor) -> bool:
    if isinstance(operation, layers.Conv2D):  # as in MobileNetV3
        return tuple(operation.kernel_size) == (1, 1) and tuple(source.shape[1:3]) == (1, 1)
    return isinstance(operation, layers.Dense)


def _output_of(model: keras.Model, name: str, source: Path | str) -> keras.KerasTensor:
    """The output of a layer of the graph, at its last use."""
    found = [layer for layer in model.layers if layer.name == name]
    if not found:
        names = [layer.name for layer in model.layers]
        remedy = did_you_mean(name, names) or f"its last layers are {', '.join(names[-4:])}"
        raise UserError(f"there is no layer {name}", path=source, remedy=remedy, setting="head_on")
    # Not `layer.output`, which may belong to a graph that the layer was in before.
    levels = keras.Model(model.inputs[0], model.outputs[0])._nodes_by_depth
    nodes = [node for depth in sorted(levels) for node in levels[depth]]
    return next(node.output_tensors[0] for node in nodes if node.operation is found[0])
