"""Training with frozen layers: they keep their weights, bit for bit, and a resumed run is as one that never stopped."""

import signal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from kimagenet import cli, models, train
from kimagenet.inference import fine_tuning
from kimagenet.networks import freezing
from kimagenet.networks.rebuild import rebuilt
from kimagenet.runs.directory import RunDirectory
from kimagenet.training.unfreezing import Unfreezing
from pipelines import UserError
from tests.helpers.data import NUM_CLASSES, TRAIN_RECORDS
from tests.helpers.runs import final_weights, read_log

BATCH_SIZE = 25
STEPS = TRAIN_RECORDS // BATCH_SIZE  # of an epoch
FLAGS = ["--image-size=32", f"--batch-size={BATCH_SIZE}", "--workers=1", "--loader=tfdata", "--epsilon=1e-7"]
WRAPPED = ["--use-lookahead", "--sync-period=2", "--slow-step-size=0.3", "--iter-size=3", "--ema=0.9"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the demo model with random batch statistics."""
    keras.utils.set_random_seed(1)
    model = models.build("demo", NUM_CLASSES, 32, 0.1)
    for variable in model.non_trainable_variables:
        if variable.name.startswith("moving"):
            variable.assign(np.random.default_rng(0).uniform(0.5, 1.5, variable.shape))
    path = tmp_path_factory.mktemp("start") / "start.keras"
    model.save(path)
    return path


def weights(path: Path) -> dict[str, np.ndarray]:
    return {weight.path: weight.numpy() for weight in keras.models.load_model(path).weights}


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    """The layers with a weight that is not the same, bit for bit."""
    assert before.keys() == after.keys()
    return {name.split("/")[0] for name in before if before[name].tobytes() != after[name].tobytes()}


@pytest.mark.parametrize(
    "flags",
    [
        [*WRAPPED, "--weight-decay=0.01", "--mixup=0.2", "--optimizer=adam"],
        [*WRAPPED, "--weight-decay=0", "--decoupled-weight-decay=0.1", "--optimizer=adamw", "--clip-global-norm=1"],
        ["--weight-decay=0.1", "--optimizer=sgd", "--amp=bfloat16"],
    ],
    ids=["l2", "decoupled", "plain"],
)
def test_frozen_weights_stay_the_same(
    start: Path, flags: list[str], tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path / "run")
    common = [*FLAGS, f"--dataset-dir={tiny_dataset}", f"--output={run.path}", "--epochs=2", "--dropout-rate=0.1"]
    try:
        assert train.main([str(start), *common, *flags, "--freeze=all-but-head"]) == 0
    finally:
        keras.mixed_precision.set_global_policy("float32")
    head = keras.models.load_model(start).get_layer("Logits").count_params()
    every = keras.models.load_model(start).count_params()
    assert f"{head:,} of {every:,} parameters are trained, " in capsys.readouterr().out
    assert run.read_info()["parameters"] == {"trained": head, "all": every}
    for file in (run.final, run.last):
        assert changed(weights(start), weights(file)) == {"Logits"}
        assert freezing.parameters(keras.models.load_model(file)) == (head, every)


def test_layers_that_a_file_froze_stay_frozen(start: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    """Also in a nested model, and where the nested model is frozen as a whole."""
    image = keras.Input((32, 32, 3))
    inner = layers.MultiHeadAttention(2, 4, name="attention")
    x = layers.Reshape((64, 6))(layers.Conv2D(6, 4, 4, name="conv")(image))
    base = keras.Model(image, layers.Reshape((8, 8, 6))(inner(x, x)), name="base")
    norm = layers.BatchNormalization(name="norm")
    pooled = layers.GlobalAveragePooling2D()(norm(base(image)))
    model = keras.Model(image, layers.Dense(NUM_CLASSES, "softmax", name="end")(pooled))
    path = tmp_path / "model.keras"
    every = len(model.trainable_variables)

    def trained() -> set[str]:
        model.save(path)
        built = fine_tuning.build(path, NUM_CLASSES, 32)
        assert len(built.trainable_variables) == len(model.trainable_variables)
        return {layer.name for layer in freezing.weighted_layers(built) if layer.trainable_variables}

    assert trained() == {"conv", "attention", "norm", "end"}
    base.get_layer("conv").trainable = False
    assert trained() == {"attention", "norm", "end"}
    inner._query_dense.trainable = False  # a .keras file does not keep this, a copy does
    assert len(model.trainable_variables) == every - 4
    assert len(rebuilt(model, 32).trainable_variables) == every - 4
    base.trainable = norm.trainable = False
    assert trained() == {"end"}
    base.get_layer("conv").trainable = True
    assert trained() == {"conv", "end"}
    freezing.freeze(model, "none")
    assert len(model.trainable_variables) == every
    model.trainable = False
    model.save(path)
    with pytest.raises(UserError, match="all its layers are frozen; train some of them: all-but-head or none"):
        freezing.freeze(fine_tuning.build(path, NUM_CLASSES, 32), "")
    tuned = fine_tuning.build(path, NUM_CLASSES + 1, 32)
    assert [layer.name for layer in freezing.weighted_layers(tuned) if layer.trainable] == ["Logits"]


def test_a_frozen_batch_normalization_uses_its_moving_statistics() -> None:
    model = models.build("demo", NUM_CLASSES, 32)
    freezing.freeze(model, "all-but-head")
    images = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(model(images, training=True), model(images, training=False))
    freezing.freeze(model, "none")
    assert np.abs(np.asarray(model(images, training=True)) - np.asarray(model(images, training=False))).max() > 1e-3


@pytest.mark.parametrize("stop_at", [STEPS - 2, STEPS, STEPS + 1, STEPS + 3])
def test_a_resumed_run_unfreezes_as_one_that_never_stopped(
    stop_at: int,
    unfrozen: RunDirectory,
    start: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunDirectory(tmp_path / "run")
    stops: list[int] = []

    def stop(self: Unfreezing, batch: int, logs: Any = None) -> None:
        if self._loop.global_step == stop_at and not stops:
            stops.append(stop_at)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Unfreezing, "on_train_batch_end", stop)
    flags = unfreezing_flags(start, tiny_dataset, run)
    assert train.main(flags) == cli.EXIT_RESUME
    assert stops
    assert train.main(["--resume", f"--output={run.path}"]) == 0
    for a, b in zip(final_weights(unfrozen), final_weights(run), strict=True):
        np.testing.assert_array_equal(a, b)
    values = [[line[key] for line in read_log(r, "epoch") for key in ("loss", "val_loss")] for r in (unfrozen, run)]
    assert values[0] == values[1]


def unfreezing_flags(start: Path, dataset: Path, run: RunDirectory) -> list[str]:
    flags = [*FLAGS, *WRAPPED, "--epochs=3", "--freeze=all-but-head", "--unfreeze-epoch=1", "--dropout-rate=0.2"]
    return [str(start), *flags, f"--dataset-dir={dataset}", f"--output={run.path}"]


@pytest.fixture(scope="module")
def unfrozen(start: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of three epochs, whose layers are frozen in the first one."""
    run = RunDirectory(tmp_path_factory.mktemp("unfrozen") / "run")
    best: list[dict[str, np.ndarray]] = []
    original = Unfreezing.unfreeze

    def unfreeze(self: Unfreezing) -> None:
        original(self)
        best.append({weight.path: weight.numpy() for weight in self._loop.model.weights})
        optimizer = self._loop.model.optimizer
        assert int(optimizer.iterations) == 0
        assert len(optimizer._trainable_variables) == len(self._loop.model.trainable_variables)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unfreezing, "unfreeze", unfreeze)
        assert train.main(unfreezing_flags(start, tiny_dataset, run)) == 0
    # The second part starts from the weights that were evaluated; only those of the head differ from the file.
    assert len(best) == 1
    assert changed(weights(start), best[0]) == {"Logits"}
    return run


def test_unfrozen_layers_are_trained_and_saved_so(
    unfrozen: RunDirectory, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(changed(weights(start), weights(unfrozen.final))) == len(
        list(freezing.weighted_layers(keras.models.load_model(start)))
    )
    trained, every = freezing.parameters(keras.models.load_model(unfrozen.final))
    assert trained > 0.9 * every
    recipe = fine_tuning.recipe_of(str(unfrozen.path))
    assert (recipe.freeze, recipe.unfreeze_epoch) == ("", 0)


def test_unfreezing_without_frozen_layers_is_refused(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*FLAGS, "--epochs=2", "--unfreeze-epoch=1", f"--dataset-dir={tiny_dataset}"]
    assert train.main(["demo", *flags, f"--output={tmp_path / 'run'}"]) == 2
    assert "unfreeze_epoch has nothing to unfreeze, because no layer is frozen" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_penalty_leaves_out_frozen_kernels() -> None:
    model = models.build("demo", NUM_CLASSES, 32)
    freezing.freeze(model, "all-but-head")
    assert [kernel.path for kernel in models.l2_kernels(model)] == [model.get_layer("Logits").kernel.path]
