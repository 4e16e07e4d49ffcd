"""Weights of classes: where they come from, and what they do to the loss, against sums by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from kimagenet import class_weights
from kimagenet.class_weights import balanced, described, read
from pipelines import UserError
from pipelines.shards.dataset import ClassInfo
from tests.helpers.data import NUM_CLASSES

CLASSES = [
    ClassInfo(name="crane", wnid="n02012849"),
    ClassInfo(name="crane", wnid="n03126707"),
    ClassInfo(name="Äpfel"),
]


def test_balanced_weights_by_hand() -> None:
    """Six records: three, two, none and one. Three classes have records, so each counts as two records."""
    weights = balanced(np.array([0, 0, 0, 1, 1, 3]), 4)
    np.testing.assert_allclose(weights, [6 / 9, 6 / 6, 0, 6 / 3])
    assert weights.dtype == np.float32
    assert np.average(weights, weights=[3, 2, 0, 1]) == pytest.approx(1)
    np.testing.assert_allclose(balanced(np.arange(50) % 5, 5), 1)


def test_which_weights_a_recipe_means(tmp_path: Path) -> None:
    def labels() -> np.ndarray:
        return np.array([0, 1, 1, 2])

    assert class_weights.class_weights("none", CLASSES, labels) is None
    found = class_weights.class_weights("balanced", CLASSES, labels)
    np.testing.assert_allclose(found, [4 / 3, 4 / 6, 4 / 3], rtol=1e-6)
    path = tmp_path / "weights.json"
    path.write_text('{"Äpfel": 2}')
    assert class_weights.class_weights(str(path), CLASSES, labels).tolist() == [1, 1, 2]
    path.unlink()
    assert class_weights.class_weights(str(path), CLASSES, labels, [0.5, 1, 3]).tolist() == [0.5, 1, 3]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("w.json", '{"n02012849": 0.5, "Äpfel": 3}', [0.5, 1, 3]),
        ("w.json", "{}", [1, 1, 1]),
        ("w.csv", "class,weight\nn03126707,2\n\nÄpfel, 1.5\n", [1, 2, 1.5]),
        ("w.CSV", '"Äpfel",0\n', [1, 1, 0]),
        ("w.csv", "\ufeffÄpfel,4\r\n", [1, 1, 4]),
    ],
)
def test_files_of_weights(name: str, text: str, expected: list[float], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read(tmp_path / name, CLASSES) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("w.json", None, "No such file"),
        ("w.json", "[1, 2]", r"cannot be read \(it is not a JSON object of class names and weights\)"),
        ("w.json", '{"Äpfel": 1, "Äpfel": 2}', "the key 'Äpfel' is there twice"),
        ("w.json", '{"Äpfel": "much"}', "the weight of 'Äpfel' is no number: 'much'"),
        ("w.json", '{"Äpfel": true}', "the weight of 'Äpfel' is no number: True"),
        ("w.json", '{"Äpfel": -1}', "the weight of 'Äpfel' must be 0 or more, and finite, not -1.0"),
        ("w.json", '{"Äpfel": NaN}', "must be 0 or more, and finite, not nan"),
        ("w.json", '{"Äpfe": 1}', r"the data set has no class 'Äpfe'; did you mean Äpfel\?"),
        ("w.json", '{"crane": 1}', "2 classes have the name 'crane'; use their WordNet ids"),
        ("w.json", '{"n02012849": 0, "n03126707": 0, "Äpfel": 0}', "gives every class the weight 0"),
        ("w.csv", "Äpfel,1\nÄpfel,2\n", "names the class 'Äpfel' twice"),
        ("w.csv", "Äpfel;1\n", "a line has 1 fields, not a name and a weight"),
        ("w.csv", "Äpfel,heavy\n", "the weight of 'Äpfel' is no number: 'heavy'"),
        ("w.csv", b"\xff\xfe", "cannot be read"),
    ],
)
def test_wrong_files_are_refused(name: str, text: str | bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        read(path, CLASSES)
    assert caught.value.path == path
    assert caught.value.setting == "class_weights"


def test_weights_in_one_line() -> None:
    names = ["a", "b", "c"]
    assert described("balanced", np.array([0.5, 2, 0.75]), names) == "balanced: 0.5 (a) to 2 (b)"
    assert described("w.json", np.array([1, 4, 1]), names) == "w.json: 1 (a) to 4 (b); 2 of 3 classes have 1"


@pytest.mark.slow
@pytest.mark.parametrize(("smoothing", "mixes"), [(0.0, False), (0.1, False), (0.0, True), (0.1, True)])
@pytest.mark.parametrize("xla", [False, True])
def test_the_loss_is_the_sum_by_hand(smoothing: float, mixes: bool, xla: bool) -> None:
    """Also with images of two classes: the loss of each part, with the weight of its class, by its share."""
    import keras
    import tensorflow as tf

    from kimagenet.training.mixing import MixSpec, draw, mix
    from kimagenet.training.steps import make_training_step
    from tests.test_loop import IMAGE_SIZE, make_model

    rng = np.random.default_rng(1)
    weights = rng.uniform(0.2, 3, NUM_CLASSES).astype(np.float32)
    weights[4] = 0
    images = tf.constant(rng.uniform(-1, 1, (6, IMAGE_SIZE, IMAGE_SIZE, 3)), tf.float32)
    labels = np.array([0, 4, 4, 9, 1, 0], np.int32)
    model = make_model()
    mixing = MixSpec(mixup=0.4, cutmix=1.0) if mixes else None
    mixed, shares = images, tf.eye(6)
    if mixing:
        mixed, shares = mix(images, shares, mixing, draw(6, 5, 7, 0))  # how much of each image is in each mixture
    logs = np.log(np.asarray(model(mixed), np.float64))
    expected = 0.0
    for mixture, parts in enumerate(np.asarray(shares, np.float64)):
        for image, share in enumerate(parts):
            of_image = -(1 - smoothing) * logs[mixture, labels[image]] - smoothing * logs[mixture].mean()
            expected += share * weights[labels[image]] * of_image / 6

    with tf.GradientTape() as tape:
        probabilities = model(mixed)
        targets = (np.eye(NUM_CLASSES)[labels] * (1 - smoothing) + smoothing / NUM_CLASSES) * weights[labels][:, None]
        targets = tf.matmul(shares, tf.constant(targets, tf.float32))
        loss = -tf.reduce_sum(targets * tf.math.log(probabilities)) / 6
    wanted = [
        v - g for v, g in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables), strict=True)
    ]

    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(model.trainable_variables)
    options = {"label_smoothing": smoothing, "class_weights": weights, "mixing": mixing, "seed": 5, "xla": xla}
    step = make_training_step(model, optimizer, tf.distribute.get_strategy(), 6, **options)
    found = step(images, tf.constant(labels), tf.constant(7, tf.int64)).numpy()[0]
    assert found == pytest.approx(expected, rel=1e-5)
    for variable, value in zip(model.trainable_variables, wanted, strict=True):
        np.testing.assert_allclose(variable.numpy(), value.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_run_keeps_the_weights_of_a_file(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Also if the file changes or is gone; and it prints the accuracy of each class at its end."""
    from kimagenet import train
    from kimagenet.runs.directory import RunDirectory

    path, run = tmp_path / "weights.json", RunDirectory(tmp_path / "run")
    path.write_text(json.dumps({"class 3": 2.5}))
    flags = ["demo", "--image-size=32", "--batch-size=20", "--loader=tfdata", "--workers=1", "--epochs=1"]
    command = [*flags, f"--dataset-dir={tiny_dataset}", f"--output={run.path}", f"--class-weights={path}"]
    assert train.main([*command, "--sampling=balanced"]) == 0
    printed = capsys.readouterr().out
    assert f"weights {path}: 1 (class 0) to 2.5 (class 3); 9 of 10 classes have 1\n" in printed
    assert "order   balanced: about 10 records of each class in an epoch; each of 10 of " in printed
    assert "class                              records    top-1    top-5  most often taken for\n" in printed
    expected = [2.5 if label == 3 else 1 for label in range(NUM_CLASSES)]
    assert run.read_info()["class_weights"] == expected
    path.unlink()
    again = ["--force-resume", f"--output={run.path}", "--epochs=2", "--no-per-class"]
    assert train.main(again) == 0
    assert run.read_info()["class_weights"] == expected
    assert "most often taken for" not in capsys.readouterr().out
    path.write_text(json.dumps({"class 3": 1.5}))
    other = tmp_path / "other.json"
    path.rename(other)
    assert train.main([*again[:-2], "--epochs=3", f"--class-weights={other}"]) == 0
    assert run.read_info()["class_weights"][3] == 1.5
