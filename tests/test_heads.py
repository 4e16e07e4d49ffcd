"""A new head on networks of others."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from kimagenet import models
from kimagenet.inference import fine_tuning
from kimagenet.networks import freezing
from pipelines import UserError

SIZE = 32
Tensor = keras.KerasTensor


def noise(size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)


def functional(end: Callable[[Tensor], Tensor]) -> keras.Model:
    keras.utils.set_random_seed(1)
    image = keras.Input((SIZE, SIZE, 3))
    return keras.Model(image, end(layers.Conv2D(5, 3, name="features")(image)), name="own")


def as_mobilenet_v3(x: Tensor) -> Tensor:
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Dropout(0.2)(layers.Conv2D(7, 1, activation="relu")(x))
    return layers.Activation("softmax")(layers.Flatten()(layers.Conv2D(4, 1)(x)))


def base() -> keras.Model:
    return functional(lambda x: layers.GlobalAveragePooling2D()(x))


def nested(*after: keras.Layer, training: bool | None = None) -> keras.Model:
    image = keras.Input((SIZE, SIZE, 3))
    x = base()(image, training=training)
    for layer in after:
        x = layer(x)
    return keras.Model(image, x, name="own")


# What the head takes, by the number of values; and whether the network has a head at all.
ENDINGS = {
    "dense": (lambda: functional(lambda x: layers.Dense(4, "softmax")(layers.GlobalMaxPooling2D()(x))), 5),
    "logits": (lambda: functional(lambda x: layers.Dense(4)(layers.GlobalAveragePooling2D()(x))), 5),
    "softmax": (
        lambda: functional(lambda x: layers.Softmax()(layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))),
        5,
    ),
    "two dense": (
        lambda: functional(lambda x: layers.Dense(4, "softmax")(layers.Dense(9)(layers.Flatten()(x)))),
        9,
    ),
    "convolution": (lambda: functional(as_mobilenet_v3), 7),
    "no head": (lambda: functional(lambda x: layers.ReLU()(x)), 5),
    "pooled": (base, 5),
    "nested": (lambda: nested(layers.Dense(4, "softmax")), 5),
    "nested, frozen mode": (lambda: nested(layers.Dropout(0.5), layers.Dense(4), training=False), 5),
    "in a row": (
        lambda: keras.Sequential(
            [functional(lambda x: layers.Dense(4)(layers.GlobalMaxPooling2D()(x))), layers.Softmax()]
        ),
        5,
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_the_head_of_any_network_is_replaced(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, width = ENDINGS[name][0](), ENDINGS[name][1]
    model.save(tmp_path / "m.keras")
    tuned = fine_tuning.build(tmp_path / "m.keras", 11, SIZE, dropout_rate=0.3)
    assert tuned.output_shape == (None, 11)
    assert tuned.get_layer("Logits").kernel.shape == (width, 11)
    assert sum(isinstance(layer, layers.Dropout) for layer in tuned.layers) == 1
    out = capsys.readouterr().out
    expected = "it gets a new head for 11 classes" if name in ("no head", "pooled") else "its head for 4 classes is"
    assert expected in out
    assert out.count("\n") == 1
    np.testing.assert_allclose(np.asarray(tuned(noise())).sum(axis=1), 1, rtol=1e-5)
    freezing.freeze(tuned, "all-but-head")
    assert {variable.path.split("/")[-2] for variable in tuned.trainable_variables} == {"Logits"}
    tuned.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras")
    np.testing.assert_allclose(again(noise()), tuned(noise()), atol=1e-6)


def test_the_features_are_those_of_the_network(tmp_path: Path) -> None:
    model = functional(lambda x: layers.Dense(4, "softmax")(layers.GlobalMaxPooling2D(name="pool")(x)))
    model.save(tmp_path / "m.keras")
    tuned = fine_tuning.build(tmp_path / "m.keras", 11, SIZE)
    pooled = keras.Model(model.inputs[0], model.get_layer("pool").output)(noise())
    kernel, bias = tuned.get_layer("Logits").get_weights()
    logits = np.asarray(pooled) @ kernel + bias
    np.testing.assert_allclose(tuned(noise()), keras.activations.softmax(keras.ops.array(logits)), atol=1e-5)


def test_a_dropout_of_the_network_is_kept_unless_there_is_a_new_one(tmp_path: Path) -> None:
    end = [layers.Dropout(0.4, name="own_dropout"), layers.Dense(4, "softmax")]
    model = keras.Sequential([layers.Input((SIZE, SIZE, 3)), layers.GlobalMaxPooling2D(), *end])
    model.save(tmp_path / "m.keras")
    for rate, expected in ((0.0, ["own_dropout"]), (0.3, ["dropout"])):
        tuned = fine_tuning.build(tmp_path / "m.keras", 5, SIZE, dropout_rate=rate)
        assert [layer.name for layer in tuned.layers if isinstance(layer, layers.Dropout)] == expected


@pytest.mark.parametrize(
    ("layer", "width"), [("features", 5), ("tokens", 5), ("pool", 5)], ids=["maps", "tokens", "pooled"]
)
def test_a_head_on_a_named_layer(layer: str, width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def end(x: Tensor) -> Tensor:
        tokens = layers.Reshape((-1, 5), name="tokens")(x)
        return layers.Dense(3)(layers.LayerNormalization()(layers.GlobalAveragePooling1D(name="pool")(tokens)))

    functional(end).save(tmp_path / "m.keras")
    tuned = fine_tuning.build(tmp_path / "m.keras", 6, SIZE, head_on=layer)
    assert tuned.get_layer("Logits").kernel.shape == (width, 6)
    assert f"it gets a new head for 6 classes on {layer}" in capsys.readouterr().out
    assert not any(isinstance(layer, layers.LayerNormalization) for layer in tuned.layers)


def test_our_networks_take_a_head_on_a_named_layer(tmp_path: Path) -> None:
    model = models.build("demo", 4, SIZE)
    model.save(tmp_path / "m.keras")
    name = next(layer.name for layer in model.layers if isinstance(layer, layers.ReLU))
    tuned = fine_tuning.build(tmp_path / "m.keras", 4, SIZE, 0.2, head_on=name)
    assert len(tuned.weights) < len(model.weights)
    tuned(noise())


@pytest.mark.parametrize(
    ("make", "head_on", "message"),
    [
        (lambda: functional(lambda x: layers.Softmax()(layers.GlobalMaxPooling2D()(x))), "", "cannot be replaced"),
        (ENDINGS["dense"][0], "featurs", r"there is no layer featurs; did you mean features\?"),
        (ENDINGS["dense"][0], "zzz", "there is no layer zzz; its last layers are"),
    ],
)
def test_what_is_not_found_is_said_in_one_line(make: Callable, head_on: str, message: str, tmp_path: Path) -> None:
    make().save(tmp_path / "m.keras")
    with pytest.raises(UserError, match=message) as caught:
        fine_tuning.build(tmp_path / "m.keras", 11, SIZE, head_on=head_on)
    assert caught.value.setting == "head_on"
