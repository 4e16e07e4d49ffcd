"""Training that starts from a saved model, and mixed precision."""

import re
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from kimagenet import cli, evaluate, models, train, train_settings
from kimagenet.inference import fine_tuning, trained
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory, save_model
from pipelines import UserError
from tests.helpers.data import NUM_CLASSES

SMALL = ["--image-size=32", "--batch-size=20", "--loader=tfdata", "--workers=1", "--epochs=1"]


def noise(size: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)


def shaken(name: str, num_classes: int, size: int) -> keras.Model:
    """A model with random batch statistics."""
    keras.utils.set_random_seed(1)
    model = models.build(name, num_classes, size, 0.1)
    rng = np.random.default_rng(0)
    for variable in model.non_trainable_variables:
        if variable.name.startswith("moving"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


@pytest.fixture
def float32_again():
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="module")
def run(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    output = tmp_path_factory.mktemp("saved") / "run"
    assert (
        train.main(["demo", *SMALL, "--dropout-rate=0.1", f"--dataset-dir={tiny_dataset}", f"--output={output}"]) == 0
    )
    return RunDirectory(output)


@pytest.mark.parametrize(("name", "suffix"), [("demo", ".h5"), ("osnet", ".keras")])
def test_a_saved_model_gives_the_same_outputs(name: str, suffix: str, tmp_path: Path) -> None:
    model = shaken(name, NUM_CLASSES, 64)
    path = tmp_path / f"model{suffix}"
    model.save(path)
    again = fine_tuning.build(path, NUM_CLASSES, 64, dropout_rate=0.3)
    np.testing.assert_allclose(again(noise(64)), model(noise(64)), atol=1e-6)
    assert [w.path for w in again.weights] == [w.path for w in model.weights]
    assert again.name == name
    assert again.get_layer("dropout").rate == 0.3


def test_logits_are_refused_and_a_softmax_fixes_it(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    image = keras.Input((32, 32, 3))
    logits = keras.Model(image, layers.Dense(NUM_CLASSES)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))))
    path = tmp_path / "logits.keras"
    logits.save(path)
    for opened in (lambda: fine_tuning.build(path, NUM_CLASSES, 32), lambda: trained.load(path)):
        with pytest.raises(UserError, match="not probabilities; end it with a softmax"):
            opened()
    keras.Model(image, {"one": logits.output}).save(tmp_path / "named.keras")
    with pytest.raises(UserError, match="not one probability per class"):
        trained.load(tmp_path / "named.keras")
    keras.Sequential([keras.models.load_model(path), layers.Softmax()]).save(path)
    expected = keras.activations.softmax(logits(noise(32)))
    np.testing.assert_allclose(fine_tuning.build(path, NUM_CLASSES, 32)(noise(32)), expected, atol=1e-6)


def test_a_saved_model_takes_images_of_another_size(tmp_path: Path) -> None:
    model = shaken("demo", NUM_CLASSES, 64)
    model.save(tmp_path / "model.keras")
    larger = models.build("demo", NUM_CLASSES, 96)
    larger.set_weights(model.get_weights())
    again = fine_tuning.build(tmp_path / "model.keras", NUM_CLASSES, 96)
    np.testing.assert_allclose(again(noise(96)), larger(noise(96)), atol=1e-6)


def test_the_head_is_replaced_for_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = shaken("demo", 4, 32)
    model.trainable = False
    path = tmp_path / "model.keras"
    model.save(path)
    tuned = fine_tuning.build(path, 7, 32)
    assert capsys.readouterr().out == f"{path}: its head for 4 classes is replaced by a new one for 7\n"
    assert tuned.output_shape == (None, 7)
    assert [variable.path for variable in tuned.trainable_variables] == ["Logits/kernel", "Logits/bias"]
    pooled = [keras.Model(m.inputs[0], m.get_layer("global_pool").output)(noise(32)) for m in (model, tuned)]
    np.testing.assert_allclose(*pooled, atol=1e-6)
    assert tuned.get_layer("Logits").kernel.numpy().std() == pytest.approx(0.02, rel=0.15)
    fine_tuning.build(path, 4, 32)
    assert capsys.readouterr().out == ""


def test_other_heads_are_kept_for_the_same_number_of_classes(tmp_path: Path) -> None:
    model = keras.Sequential([layers.Input((32, 32, 3)), layers.GlobalMaxPooling2D(), layers.Dense(4, "softmax")])
    path = tmp_path / "foreign.keras"
    model.save(path)
    np.testing.assert_allclose(fine_tuning.build(path, 4, 48)(noise(48)), model(noise(48)), atol=1e-6)
    assert fine_tuning.build(path, 5, 32).output_shape == (None, 5)


def test_training_starts_from_a_run(run: RunDirectory, tiny_dataset: Path, tmp_path: Path) -> None:
    """With a learning rate of almost zero the new run has the weights of the old one."""
    output = tmp_path / "again"
    flags = ["--loader=tfdata", "--workers=1", f"--dataset-dir={tiny_dataset}", f"--output={output}"]
    flags += [f"--recipe={run.path}", "--optimizer=sgd", "--initial_lr=1e-30", "--weight-decay=0", "--bn-momentum=0.7"]
    assert train.main([str(run.path), *flags]) == 0
    recipe = Recipe.load(RunDirectory(output).recipe)
    assert recipe.model == str(run.final)
    before = Recipe.load(run.recipe)
    assert (recipe.image_size, recipe.batch_size, recipe.dropout_rate) == (32, 20, 0.1)
    assert recipe.lr_sched == before.lr_sched
    first, second = (keras.models.load_model(r.final) for r in (run, RunDirectory(output)))
    for a, b in zip(first.trainable_variables, second.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [{layer.momentum for layer in models.batch_norms(model)} for model in (first, second)] == [{0.9}, {0.7}]
    assert evaluate.main([str(output), "--loader=tfdata"]) == 0


def test_an_interrupted_run_is_found_and_a_file_gives_its_image_size(run: RunDirectory, tmp_path: Path) -> None:
    assert trained.find_model(run.path) == run.final
    stopped = RunDirectory(tmp_path / "stopped")
    stopped.last.parent.mkdir(parents=True)
    stopped.info.write_text(run.info.read_text())
    with pytest.raises(UserError, match=r"last\.keras: not written yet, the run is not finished"):
        trained.find_model(stopped.path)
    stopped.last.write_bytes(run.last.read_bytes())
    assert trained.find_model(stopped.path) == stopped.last
    for name in ("bare.keras", "bare.h5"):
        models.build("demo", 3, 40).save(tmp_path / name)
        recipe = fine_tuning.recipe_of(str(tmp_path / name))
        assert recipe == Recipe(model=str(tmp_path / name), image_size=40, crop_ratio=1.0)
    save_model(models.build("demo", 3, 48), tmp_path / "x.keras")
    flags = train.make_parser().parse_args([str(tmp_path / "x.keras"), "--epochs=3"])
    assert train_settings.resolve_recipe(flags)[0].image_size == 48


@pytest.fixture
def wrong_files(tmp_path: Path) -> Path:
    (tmp_path / "text.keras").write_text("no model")
    (tmp_path / "text.h5").write_text("no model")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    models.build("demo", 3, 32).save(tmp_path / "whole.keras")
    (tmp_path / "torn.keras").write_bytes((tmp_path / "whole.keras").read_bytes()[:20_000])
    flat = [layers.Input((32, 32, 3)), layers.Flatten(), layers.Dense(NUM_CLASSES, "softmax")]
    keras.Sequential(flat).save(tmp_path / "flat.keras")
    code = layers.Lambda(lambda x: x * 2)
    with_code = keras.Sequential([layers.Input((32, 32, 3)), code, layers.GlobalMaxPooling2D(), layers.Dense(10)])
    with_code.save(tmp_path / "code.keras")
    with_code.save(tmp_path / "code.h5")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("missing.keras", [], "no such run directory or model file"),
        ("whol.keras", [], "no such run directory or model file; did you mean {folder}/whole.keras?"),
        ("missing.h5", [], "no such run directory or model file"),
        ("folder", [], "not a run directory"),
        ("text.keras", [], "cannot be trained"),
        ("text.h5", [], "cannot be trained"),
        ("empty.h5", [], "cannot be trained"),
        ("torn.keras", [], "cannot be trained"),
        ("flat.keras", ["--image-size=48"], "cannot be trained at 48 pixels"),
        ("code.keras", [], "unsafe"),
        ("code.h5", [], "cannot be trained"),
    ],
)
def test_a_wrong_file_gets_one_line(
    name: str, flags: list[str], message: str, wrong_files: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    path = wrong_files / name
    common = ["--loader=tfdata", "--workers=1", "--batch-size=20", f"--dataset-dir={tiny_dataset}"]
    assert train.main([str(path), *common, *flags, f"--output={wrong_files / 'run'}"]) == cli.EXIT_USER_ERROR
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", error), error
    assert name in error
    assert message.format(folder=wrong_files) in error
    assert not (wrong_files / "run").exists()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_damaged_file_is_read_or_refused_in_one_line(suffix: str, tmp_path: Path) -> None:
    """By the functions that all commands use."""
    path = tmp_path / f"model{suffix}"
    models.build("demo", NUM_CLASSES, 32).save(path)
    whole = path.read_bytes()
    size = len(whole)
    torn = [whole[:end] for end in (0, 4, 600, size // 2, size - 1000, size - 1)]
    changed = [whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :] for at in (0, 40, 700, size // 2, size - 30)]
    refused: list[str] = []
    for content in (*torn, *changed):
        path.write_bytes(content)
        assert fine_tuning.recipe_of(str(path)).model == str(path)
        for act in (lambda: trained.load(path), lambda: fine_tuning.build(path, NUM_CLASSES, 32)):
            try:
                act()
            except UserError as error:
                refused.append(str(error))
    assert len(refused) >= 2 * len(torn)
    assert all(re.fullmatch(rf"{re.escape(str(path))}: [^\n]+", line) for line in refused)


@pytest.mark.parametrize(("precision", "from_run"), [("float16", False), ("bfloat16", True)])
def test_mixed_precision_trains_and_keeps_the_softmax_in_float32(
    precision: str, from_run: bool, run: RunDirectory, tiny_dataset: Path, tmp_path: Path, float32_again: None
) -> None:
    """In a new run, and in one that starts from a float32 file."""
    flag = ["--amp"] if precision == "float16" else ["--amp", precision]
    flags = [*SMALL, "--dropout-rate=0.1", f"--dataset-dir={tiny_dataset}", f"--output={tmp_path / 'run'}"]
    start = [str(run.path), f"--recipe={run.path}"] if from_run else ["demo"]
    assert train.main([*start, *flag, *flags]) == 0
    again = RunDirectory(tmp_path / "run")
    model_name = str(run.final) if from_run else "demo"
    assert Recipe.load(again.recipe) == Recipe.load(run.recipe).replace(amp=precision, model=model_name)
    model = keras.models.load_model(again.final)
    kernels = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]
    assert {layer.compute_dtype for layer in kernels} == {precision}
    assert {v.dtype for v in model.weights} == {"float32"}
    assert model.get_layer("Logits").compute_dtype == "float32"
    assert model([noise(32)]).dtype == "float32"


def test_a_model_saved_in_mixed_precision_is_trained_in_float32(tmp_path: Path, float32_again: None) -> None:
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = models.build("demo", 3, 32)
    model.save(tmp_path / "mixed.keras")
    keras.mixed_precision.set_global_policy("float32")
    again = fine_tuning.build(tmp_path / "mixed.keras", 3, 32)
    assert {layer.compute_dtype for layer in again.layers} == {"float32"}
    np.testing.assert_allclose(again(noise(32)), model(noise(32)), atol=0.02)


def test_amp_works_with_and_without_a_value() -> None:
    def amp(*arguments: str) -> str:
        given = train.with_values(cli.with_hyphens(arguments))
        return train_settings.resolve_recipe(train.make_parser().parse_args(given))[0].amp

    assert amp("demo") == "off"
    assert amp("--amp", "demo") == amp("demo", "--amp") == amp("demo", "--amp", "float16") == "float16"
    assert amp("--amp", "bfloat16", "demo") == amp("demo", "--amp=bfloat16") == "bfloat16"
    assert amp("demo", "--amp", "off") == "off"
    with pytest.raises(SystemExit):
        amp("demo", "--amp=float8")
