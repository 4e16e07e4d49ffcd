"""Keras' backend in the commands, and what else needs TensorFlow."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kimagenet import backend
from kimagenet.backend import use_tensorflow
from pipelines.errors import UserError
from tests.helpers.documents import python_file

ROOT = Path(__file__).parents[1]


@pytest.fixture
def no_keras(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As in a new process, with a folder of settings; returns its keras.json."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "restored at the end")
    monkeypatch.delenv("KERAS_BACKEND")
    return tmp_path / "keras.json"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, ""),
        ("no JSON", ""),
        ("[]", ""),
        (json.dumps({"backend": "tensorflow"}), ""),
        (json.dumps({"backend": "jax"}), "asks for the backend jax; this command uses TensorFlow"),
    ],
)
def test_the_settings_file_is_overruled_in_one_line(
    content: str | None, line: str, no_keras: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend._log, "propagate", True)
    if content is not None:
        no_keras.write_text(content)
    for _ in range(2):  # said once
        use_tensorflow()
    assert os.environ["KERAS_BACKEND"] == "tensorflow"
    assert [record.getMessage() for record in caplog.records] == ([f"{no_keras} {line}"] if line else [])


def test_a_user_without_a_home_folder_has_no_settings(no_keras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `docker run --user 12345`."""
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    use_tensorflow()
    assert os.environ["KERAS_BACKEND"] == "tensorflow"


def test_the_environment_is_an_explicit_wish(no_keras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(UserError, match="KERAS_BACKEND=jax: this command needs TensorFlow; `unset KERAS_BACKEND`"):
        use_tensorflow()
    assert os.environ["KERAS_BACKEND"] == "jax"


@pytest.mark.parametrize("module", ["kimagenet.train", "kimagenet.doctor", "bench"])
def test_commands_refuse_it_with_exit_code_2(module: str, tmp_path: Path) -> None:
    arguments = {"kimagenet.train": ["demo"], "bench": ["gpu", "--output", str(tmp_path / "x.json")]}.get(module, [])
    environment = os.environ | {"KERAS_BACKEND": "torch", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: KERAS_BACKEND=torch: this command needs TensorFlow")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["jax", "torch"])
def test_the_script_of_the_page(name: str, tiny_dataset: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} not installed (`pip install {name}`)")
    (tmp_path / "tfrecords").symlink_to(tiny_dataset)
    code = python_file("docs/faq.md", "Trains the demo's network on JAX.").replace('"jax"', f'"{name}"')
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"trained on {name}"


def test_our_optimizers_refuse_other_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    from kimagenet.optim import IterSize, Lookahead

    inner = keras.optimizers.SGD()
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    for wrapper, arguments in ((Lookahead, ()), (IterSize, (2,))):
        with pytest.raises(UserError, match="works on Keras' TensorFlow backend, not on jax"):
            wrapper(inner, *arguments)
