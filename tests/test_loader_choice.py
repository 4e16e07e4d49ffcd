"""Which loader a name gives: without DALI the cause and the remedy are named, and tf.data takes over or is refused."""

import builtins
import logging
from pathlib import Path

import pytest
import tensorflow as tf

from pipelines import ShardSet, UserError
from pipelines.loaders import dali
from tests.test_loaders import DALI_PROBLEM, needs_dali, opened


@pytest.fixture(scope="module")
def train(tiny_dataset: Path) -> ShardSet:
    return ShardSet.open(tiny_dataset, "train")


def _hide(monkeypatch: pytest.MonkeyPatch, hidden: str, error: Exception | None = None) -> None:
    """Makes a module look as if it were not installed, or raise `error` when it is imported."""
    import importlib.util

    real = importlib.util.find_spec
    if error is None:
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name, *rest: None if name == hidden else real(name, *rest)
        )
    else:

        def broken(name: str):
            raise error

        monkeypatch.setattr("importlib.import_module", broken)


@pytest.mark.parametrize(
    ("hidden", "error", "remedy"),
    [
        ("nvidia.dali", None, "package nvidia-dali-cuda120 is not installed"),
        ("nvidia.dali_tf_plugin", None, "package nvidia-dali-tf-plugin-cuda120 is not installed"),
        (
            "nvidia.dali.plugin.tf",
            tf.errors.NotFoundError(None, None, "undefined symbol: _ZN10tensorflow"),
            "built for another TensorFlow",
        ),
        ("nvidia.dali.plugin.tf", builtins.OSError("libcuda is ill"), "libcuda is ill"),
    ],
)
def test_without_dali_the_cause_and_the_remedy_are_named(
    monkeypatch: pytest.MonkeyPatch, hidden: str, error: Exception | None, remedy: str
) -> None:
    if error is not None and DALI_PROBLEM:
        pytest.skip("DALI is not installed, so its plugin cannot be broken")
    _hide(monkeypatch, hidden, error)
    problem = dali.unavailable("cpu")
    assert problem is not None
    assert remedy in problem
    assert "pip install" in problem
    assert "\n" not in problem


def test_the_fallback_is_announced_or_refused(
    train: ShardSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dali, "unavailable", lambda device: "package nvidia-dali-cuda120 is not installed")
    with caplog.at_level(logging.WARNING), opened("dali", train, strict=False) as loader:
        assert loader.name == "tfdata"
    assert [message for message in caplog.messages if "nvidia-dali-cuda120" in message and "tf.data" in message]
    caplog.clear()
    with caplog.at_level(logging.WARNING), opened("auto", train) as loader:
        assert loader.name == "tfdata"
    assert "nvidia-dali-cuda120" in caplog.text
    with pytest.raises(UserError, match="nvidia-dali-cuda120"):
        opened("dali", train, strict=True)


@needs_dali
def test_auto_takes_dali_and_says_so(train: ShardSet, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), opened("auto", train) as loader:
        assert loader.name == "dali"
    assert "dali on the cpu" in caplog.text
