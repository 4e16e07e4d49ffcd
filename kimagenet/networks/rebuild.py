"""A copy of a network for another image size, and its graph with nested models opened. Imports Keras."""

from typing import Any

import keras

SCALING = "to_input_range"  # the name of the layer that scales our images


def rebuilt(loaded: keras.Model, image_size: int) -> keras.Model:
    """Copies a model, with its weights and with which of its layers are trained, for another input size.

    Args:
        loaded: a model of square RGB images.
        image_size: height and width of the new input, pixels.

    Returns:
        A model whose layers follow the current dtype policy, except the last one and `SCALING`, which are float32.
    """
    policy = keras.config.dtype_policy().name
    last = loaded.layers[-1]
    while isinstance(last, keras.Model):
        last = last.layers[-1]

    def clone(layer: keras.Layer | keras.Operation) -> keras.Layer | keras.Operation:
        if not isinstance(layer, keras.Layer):  # an operation in the graph, as keras.ops.mean
            return type(layer).from_config(layer.get_config())
        dtype = "float32" if layer is last or layer.name == SCALING else policy
        return type(layer).from_config(layer.get_config() | {"dtype": dtype})

    functional = keras.Model(loaded.inputs[0], loaded.outputs[0], name=loaded.name)
    image = keras.Input((image_size, image_size, 3), dtype="float32", name="image")
    model = keras.models.clone_model(functional, input_tensors=image, clone_function=clone, recursive=True)
    model.set_weights(loaded.get_weights())
    _copy_trainable(functional, model)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # takes its mean and variance from its weights
    return model


def _copy_trainable(source: keras.Model, copy: keras.Model) -> None:
    """Gives the layers of a copy the flags of its source: configurations have no flags of layers inside a layer.

    For the same reason Keras opens a file with a frozen layer whose inner layers are not; here they are frozen, too.
    """
    for layer in source._flatten_layers(include_self=False):
        if not layer.trainable and not isinstance(layer, keras.Model):  # layers of a model keep their flags
            for inner in layer._flatten_layers(include_self=False):
                inner.trainable = False
    found = ([part for part in model._flatten_layers(include_self=False) if part.weights] for model in (source, copy))
    for layer, new in zip(*found, strict=True):  # from the outside to the inside, because a flag is handed down
        if new.trainable != layer.trainable:
            new.trainable = layer.trainable


def applied(model: keras.Model, image: keras.KerasTensor) -> keras.KerasTensor:
    """The output of a model for another input, with the model's layers in the graph instead of a nested model.

    So the L2 penalty, freezing and the exporters find the layers.
    """
    graph = keras.Model(model.inputs[0], model.outputs[0])
    return graph._run_through_graph(image, operation_fn=lambda operation: operation)


def opened(model: keras.Model) -> keras.Model:
    """The model, with the layers of nested models at its end in its own graph. Layers without weights may follow them.

    A nested model that always runs in one mode, `base(x, training=False)`, stays nested.
    """
    tensor = model.outputs[0]
    while not isinstance((made := producer(tensor))[0], keras.Model):
        operation, source = made
        if source is None or getattr(operation, "weights", []):
            return model
        tensor = source
    nested, source = made
    node = nested._inbound_nodes[tensor._keras_history.node_index]
    if source is None or node.arguments.kwargs.get("training") is not None:
        return model

    def inner(operation: keras.Operation) -> Any:
        return (lambda x, **_: applied(nested, x)) if operation is nested else operation

    graph = keras.Model(model.inputs[0], model.outputs[0])
    output = graph._run_through_graph(model.inputs[0], operation_fn=inner)
    try:
        return opened(keras.Model(model.inputs[0], output, name=model.name))
    except ValueError:  # two layers would have the same name
        return model


def producer(tensor: keras.KerasTensor) -> tuple[keras.Operation, keras.KerasTensor | None]:
    """The operation that makes a tensor, and its input; None if it has none or several."""
    operation, index, _ = tensor._keras_history
    sources = operation._inbound_nodes[index].input_tensors
    return operation, sources[0] if len(sources) == 1 else None
