"""The models are exactly the networks they claim to be, and every file of kimagenet/models keeps the same promises."""

from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kimagenet import models
from kimagenet.models import l2_kernels
from pipelines.errors import UserError
from tests.helpers.model_tables import (
    COUNTS,
    GOOGLENET_POOLS,
    INCEPTION_V2_POOLS,
    STAGES,
    Row,
    googlenet_table,
    inception_v2_table,
)
from tests.helpers.programs import run_program

CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)
SMALL, CLASSES = 96, 7


@cache
def full_size(name: str) -> keras.Model:
    """1000 classes, 224 pixels. One for all tests: they must not change its weights."""
    keras.utils.set_random_seed(0)
    return models.build(name)


@cache
def small(name: str) -> keras.Model:
    """7 classes, 96 pixels, dropout. One for all tests: they must not change its weights."""
    keras.utils.set_random_seed(0)
    return models.build(name, num_classes=CLASSES, image_size=SMALL, dropout_rate=0.2)


def noise(batch: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


def size_of(variables: list[Any]) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)


def flat(model: keras.Model) -> list[layers.Layer]:
    """All layers, those of nested models in their place."""
    found = []
    for layer in model.layers:
        found += flat(layer) if isinstance(layer, keras.Model) else [layer]
    return found


# What every file promises.


@pytest.mark.parametrize("name", models.names())
def test_a_model_takes_images_and_returns_probabilities(name: str) -> None:
    model = full_size(name)
    assert model.name == name
    assert model.input_shape == (None, 224, 224, 3)
    assert model.output_shape == (None, 1000)
    assert model.layers[-1].name == "Logits"
    assert not any(isinstance(layer, layers.Rescaling | layers.Normalization) for layer in flat(model))
    probabilities = model(noise(1, 224), training=False).numpy()
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", models.names())
def test_the_head_is_the_common_one(name: str) -> None:
    logits = small(name).get_layer("Logits")
    assert not np.any(logits.bias.numpy())
    kernel = logits.kernel.numpy()
    assert abs(kernel.mean()) < 0.002
    assert kernel.std() == pytest.approx(0.02, rel=0.1)
    assert small(name).get_layer("dropout").rate == 0.2
    assert not any(layer.name == "dropout" for layer in full_size(name).layers)


@pytest.mark.parametrize("name", models.names())
def test_gradients_reach_every_trainable_weight(name: str) -> None:
    model = small(name)
    before = model.get_weights()
    labels = keras.ops.one_hot(np.arange(8) % CLASSES, CLASSES)
    keras.utils.set_random_seed(1)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(keras.losses.categorical_crossentropy(labels, model(noise(8, SMALL), training=True)))
    gradients = tape.gradient(loss, model.trainable_variables)
    model.set_weights(before)  # a training step moves the batch statistics
    missing = [v.path for v, g in zip(model.trainable_variables, gradients, strict=True) if g is None]
    assert not missing
    # A convolution's bias in front of a batch normalization has no effect: its gradient may be zero.
    idle = {id(layer.bias) for layer in flat(model) if isinstance(layer, CONVOLUTIONS) and layer.use_bias}
    pairs = zip(model.trainable_variables, gradients, strict=True)
    assert not [v.path for v, g in pairs if id(v) not in idle and not np.any(g)]
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("name", models.names())
def test_a_large_size_and_two_classes_in_mixed_precision(name: str) -> None:
    """One build for three promises: building is what these tests spend their time on."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = models.build(name, num_classes=2, image_size=380)
    finally:
        keras.config.set_dtype_policy(before)
    assert model.input_shape == (None, 380, 380, 3)
    assert model.output_shape == (None, 2)
    backbone = size_of(full_size(name).weights) - size_of(full_size(name).get_layer("Logits").weights)
    assert size_of(model.weights) - size_of(model.get_layer("Logits").weights) == backbone
    assert model.input.dtype == "float32"
    assert model.output.dtype == "float32"
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    assert {layer.compute_dtype for layer in flat(model) if isinstance(layer, CONVOLUTIONS)} == {"float16"}


@pytest.mark.parametrize("name", models.names())
def test_layers_of_equal_shape_start_with_different_weights(name: str) -> None:
    kernels = [v.numpy() for v in full_size(name).trainable_variables if "kernel" in v.name]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)


@pytest.mark.parametrize("name", models.names())
def test_penalized_are_kernels_of_direct_layers(name: str) -> None:
    model = full_size(name)
    penalized = {id(kernel) for kernel in l2_kernels(model)}
    assert len(penalized) == len(l2_kernels(model))
    direct = [layer for layer in model.layers if isinstance(layer, (*CONVOLUTIONS, layers.Dense))]
    assert penalized == {id(v) for layer in direct for v in layer.trainable_variables if "kernel" in v.name}


def test_saved_models_open_without_kimagenet(tmp_path: Path) -> None:
    """In a new process that never imports kimagenet; all models in one, for TensorFlow takes seconds to import."""
    images = noise(2, SMALL)
    np.save(tmp_path / "images.npy", images)
    for name in models.names():
        small(name).save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", small(name)(images, training=False).numpy())
    done = run_program("open_saved_models", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    differences = dict(line.split() for line in done.stdout.splitlines())
    assert set(differences) == set(models.names())
    assert {name: value for name, value in differences.items() if not float(value) <= 1e-6} == {}


def test_an_unknown_model_is_refused_with_the_names() -> None:
    with pytest.raises(UserError, match=r"resnet51: no such model; .*resnet50"):
        models.build("resnet51")
    with pytest.raises(UserError, match="no such model"):
        models.build("_layers")


@pytest.mark.parametrize("bad", [{"num_classes": 0}, {"image_size": 16}, {"dropout_rate": 1.0}, {"dropout_rate": -0.1}])
def test_values_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        models.build("demo", **bad)


# What the ten must be.


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    model, expected = full_size(name), COUNTS[name]
    assert model.count_params() == expected.total
    assert size_of(model.trainable_variables) == expected.trainable
    assert size_of(model.non_trainable_weights) == expected.non_trainable
    assert sum(isinstance(layer, CONVOLUTIONS) for layer in flat(model)) == expected.convolutions
    assert sum(isinstance(layer, layers.BatchNormalization) for layer in flat(model)) == expected.norms
    assert size_of(l2_kernels(model)) == expected.penalized


@pytest.mark.parametrize("name", STAGES)
def test_stages(name: str) -> None:
    found = {
        stage: sum(layer.count_params() for layer in full_size(name).layers if layer.name.startswith(stage))
        for stage in STAGES[name]
    }
    assert found == STAGES[name]
    assert sum(STAGES[name].values()) == COUNTS[name].total


@pytest.mark.parametrize(("name", "application"), [("mobilenet_v2", "MobileNetV2"), ("resnet50", "ResNet50")])
def test_layout_is_that_of_keras_applications(name: str, application: str) -> None:
    theirs = getattr(keras.applications, application)(weights=None)
    ours = [(w.path, w.shape) for w in full_size(name).weights]
    layout = [(w.path, w.shape) for w in theirs.weights]
    assert ours[:-2] == layout[:-2]
    assert [shape for _, shape in ours[-2:]] == [shape for _, shape in layout[-2:]]


def test_resnet50_is_v1_with_biases() -> None:
    model = full_size("resnet50")
    assert all(layer.use_bias for layer in model.layers if isinstance(layer, layers.Conv2D))
    assert model.get_layer("conv3_block1_1_conv").strides == (2, 2)
    assert model.get_layer("conv3_block1_2_conv").strides == (1, 1)


def test_resnet50_v1_5_has_its_strides_in_the_middle_and_no_biases() -> None:
    model = full_size("resnet50_v1_5")
    found = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]
    assert not any(layer.use_bias for layer in found)
    strided = {layer.name for layer in found if layer.strides == (2, 2)}
    assert strided == {"conv1_conv", *(f"conv{stage}_block1_{place}_conv" for stage in (3, 4, 5) for place in (0, 2))}


def test_a_blur_comes_before_each_stride_of_the_blocks_and_is_binomial() -> None:
    plain, blurred = full_size("resnet50_v1_5"), full_size("resnet50_v1_5_blurpool")
    assert blurred.count_params() == plain.count_params()
    assert [w.path for w in blurred.weights] == [w.path for w in plain.weights]
    ends = [layer.name for layer in blurred.layers if layer.name.endswith("blur_b")]
    assert sorted(ends) == sorted(f"conv{stage}_block1_{place}_blur_b" for stage in (3, 4, 5) for place in (0, 2))
    before = blurred.get_layer("conv3_block1_2_blur_pad").input
    blur = keras.Model(before, blurred.get_layer("conv3_block1_2_blur_b").output)
    dot = np.zeros((1, *before.shape[1:]), np.float32)
    dot[0, 0, 5] = 16  # at the edge: what is outside counts as 0
    found = blur(dot).numpy()[0, :, :, 0]
    np.testing.assert_allclose(found[:2, 4:7], [[2, 4, 2], [1, 2, 1]], atol=1e-6)
    assert found.sum() == pytest.approx(12)


def test_resnet50_v1_5_gives_the_outputs_of_torchvision() -> None:
    """The same random weights in both. CI has no torch: `pip install torch torchvision` to run it."""
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    ours, theirs = (
        models.build("resnet50_v1_5", num_classes=9, image_size=97),
        torchvision.models.resnet50(num_classes=9),
    )
    _randomize(ours, seed=3)
    kernel = ours.get_layer("Logits").kernel
    kernel.assign(kernel * 0.01)  # random weights are sure of nonsense
    kinds = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
    kinds |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
    state = {}
    for variable in ours.weights:
        layer, kind = variable.path.split("/")
        value = variable.numpy()
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        state[f"{_torch_name(layer)}.{kinds[kind]}"] = torch.tensor(np.ascontiguousarray(value))
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    images = noise(2, 97)
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(images.transpose(0, 3, 1, 2)))
    expected = torch.softmax(logits, dim=1).numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(ours(images, training=False).numpy(), expected, rtol=1e-3, atol=1e-5)


def _torch_name(layer: str) -> str:
    """The name of a layer of our ResNet in torchvision's: conv3_block1_2_bn is layer2.0.bn2."""
    if layer in ("Logits", "conv1_conv", "conv1_bn"):
        return {"Logits": "fc", "conv1_conv": "conv1", "conv1_bn": "bn1"}[layer]
    stage, block, place, kind = layer.split("_")
    prefix = f"layer{int(stage[4:]) - 1}.{int(block[5:]) - 1}"
    return f"{prefix}.downsample.{int(kind == 'bn')}" if place == "0" else f"{prefix}.{kind}{place}"


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("resnet50", [f"conv{s}_block{b}_3_bn" for s, n in ((2, 3), (3, 4), (4, 6), (5, 3)) for b in range(1, n + 1)]),
        ("efficientnet_b0", [f"block{b}_project_bn" for b in ("2b", "3b", "4b", "4c", "5b", "5c", "6b", "6c", "6d")]),
        ("mobilenet_v2", [f"block_{b}_project_BN" for b in (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)]),
    ],
)
def test_residual_branches_can_begin_at_zero(name: str, ends: list[str]) -> None:
    model = models.build(name, num_classes=2, image_size=32)
    assert sorted(models.zero_last_gammas(model)) == sorted(ends)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert {layer.name for layer in norms if not np.any(layer.gamma)} == set(ends)
    assert all(np.all(layer.gamma.numpy() == 1) for layer in norms if layer.name not in ends)
    with pytest.raises(UserError, match="demo has no residual branch"):
        models.zero_last_gammas(models.build("demo", num_classes=2, image_size=32))


def _randomize(model: keras.Model, seed: int) -> None:
    """Weights that tell every variable from every other, batch statistics included."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.7, 1.3, variable.shape))
        elif variable.name in ("beta", "bias", "moving_mean"):
            variable.assign(rng.normal(0, 0.1, variable.shape))


@pytest.mark.parametrize("image_size", [97, 128])
def test_efficientnet_b0_gives_the_features_of_keras_applications(image_size: int) -> None:
    ours = models.build("efficientnet_b0", num_classes=2, image_size=image_size)
    theirs = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(image_size, image_size, 3), pooling="avg"
    )
    _randomize(theirs, seed=3)
    mine = {w.path: w for w in ours.weights if not w.path.startswith("Logits")}
    # Their first layers, which ours does not have, scale the pixels.
    other = {w.path: w for w in theirs.weights if not w.path.startswith("normalization")}
    assert {path: w.shape for path, w in mine.items()} == {path: w.shape for path, w in other.items()}
    for path, variable in mine.items():
        variable.assign(other[path])
    features = keras.Model(ours.input, ours.get_layer("global_pool").output)
    images = noise(2, image_size)
    expected = theirs(
        255 * images, training=False
    ).numpy()  # their Rescaling divides by 255, their Normalization is idle
    assert expected.std() > 0.01
    np.testing.assert_allclose(features(images, training=False).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "last"), [("efficientnet_b0", 0.1875), ("efficientnet_b1", 0.275), ("efficientnet_b4", 0.3875)]
)
def test_drop_connect_rates(name: str, last: float) -> None:
    """0.2·i/16 for block i, and the same draw for a whole sample."""
    model = full_size(name)
    blocks = sorted({layer.name.split("_")[0] for layer in model.layers if layer.name.startswith("block")})
    drops = {layer.name.split("_")[0]: layer for layer in model.layers if layer.name.endswith("_drop")}
    shortcuts = {layer.name.split("_")[0] for layer in model.layers if layer.name.endswith("_add")}
    assert {b: drops[b].rate for b in drops} == pytest.approx({b: 0.2 * blocks.index(b) / 16 for b in drops})
    assert set(drops) == shortcuts - {blocks[0]}
    assert {layer.noise_shape for layer in drops.values()} == {(None, 1, 1, 1)}
    assert 0.2 * (len(blocks) - 1) / 16 == pytest.approx(last)


def test_osnet_shares_one_gate_among_the_streams_of_a_bottleneck() -> None:
    gates = [layer for layer in full_size("osnet").layers if isinstance(layer, keras.Model)]
    assert [len(gate._inbound_nodes) for gate in gates] == [4] * 6
    hidden = [gate.get_layer("reduce").units for gate in gates]
    assert hidden == [4, 4, 6, 6, 8, 8]


def _convolutions(model: keras.Model) -> dict[str, Row]:
    return {
        layer.name: (layer.kernel_size[0], layer.strides[0], layer.filters, layer.output.shape[1])
        for layer in model.layers
        if isinstance(layer, layers.Conv2D)
    }


def _pools(model: keras.Model) -> dict[str, tuple[int, int, int, str]]:
    kinds = {layers.MaxPooling2D: "max", layers.AveragePooling2D: "average"}
    return {
        layer.name: (layer.pool_size[0], layer.strides[0], layer.output.shape[1], kinds[type(layer)])
        for layer in model.layers
        if type(layer) in kinds
    }


def test_googlenet_is_the_paper_s_table() -> None:
    model = full_size("googlenet_bn")
    assert _convolutions(model) == googlenet_table()
    assert _pools(model) == GOOGLENET_POOLS
    widths = [layer.output.shape[-1] for layer in model.layers if isinstance(layer, layers.Concatenate)]
    assert widths == [256, 480, 512, 512, 512, 528, 832, 832, 1024]


def test_inception_v2_is_the_paper_s_table() -> None:
    model = full_size("inception_v2")
    assert _convolutions(model) == inception_v2_table()
    assert _pools(model) == INCEPTION_V2_POOLS
    widths = [layer.output.shape[-1] for layer in model.layers if isinstance(layer, layers.Concatenate)]
    assert widths == [256, 320, 576, 576, 576, 576, 576, 1024, 1024, 1024]


def test_the_demo_model_is_small() -> None:
    assert models.build("demo", num_classes=12, image_size=96).count_params() <= 520_000
