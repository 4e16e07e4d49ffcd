"""Which loader a name gives. Without DALI: cause and remedy, and tf.data replaces it or it is an error."""

import builtins
import logging
from pathlib import Path

import pytest
import tensorflow as tf

from pipelines import ShardSet, UserError
from pipelines.loader import Unavailable
from pipelines.loaders import Choice, choose, dali, describe
from tests.test_loaders import DALI_PROBLEM, needs_dali, opened

NOT_INSTALLED = Unavailable("package nvidia-dali-cuda120 is not installed", "`pip install x`", is_missing=True)


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
    ("hidden", "error", "cause"),
    [
        ("nvidia.dali", None, "package nvidia-dali-cuda120 is not installed"),
        ("nvidia.dali_tf_plugin", None, "package nvidia-dali-tf-plugin-cuda120 is not installed"),
        (
            "nvidia.dali.plugin.tf",
            tf.errors.NotFoundError(None, None, "undefined symbol: _ZN10tensorflow"),
            "built for another TensorFlow",
        ),
        ("nvidia.dali.plugin.tf", builtins.OSError("libcuda is damaged"), "libcuda is damaged"),
    ],
)
def test_without_dali_the_cause_and_the_remedy_are_named(
    monkeypatch: pytest.MonkeyPatch, hidden: str, error: Exception | None, cause: str
) -> None:
    if error is not None and DALI_PROBLEM:
        pytest.skip("DALI is not installed, so its plugin cannot be broken")
    _hide(monkeypatch, hidden, error)
    problem = dali.unavailable("cpu")
    assert problem is not None
    assert cause in problem.cause
    assert problem.is_missing == (error is None)
    assert problem.remedy.startswith("`pip install")
    assert str(problem) == f"{problem.cause} ({problem.remedy})"
    assert "\n" not in str(problem)


def test_the_fallback_is_announced_or_refused(
    train: ShardSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dali, "unavailable", lambda device: NOT_INSTALLED)
    with caplog.at_level(logging.WARNING), opened("dali", train, strict=False) as loader:
        assert loader.name == "tfdata"
    assert [message for message in caplog.messages if "nvidia-dali-cuda120" in message and "tf.data" in message]
    caplog.clear()
    with caplog.at_level(logging.WARNING), opened("auto", train) as loader:
        assert loader.name == "tfdata"
    assert "nvidia-dali-cuda120" in caplog.text
    with pytest.raises(UserError, match="nvidia-dali-cuda120") as caught:
        opened("dali", train, strict=True)
    assert caught.value.remedy == NOT_INSTALLED.remedy


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_choice_has_fields_and_one_line_for_the_user(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[str, Unavailable | None, str, bool, str]] = [
        ("auto", None, "dali", False, f"loader auto: dali on the {device}"),
        ("auto", NOT_INSTALLED, "tfdata", True, f"loader auto: tfdata, because {NOT_INSTALLED}"),
        ("dali", None, "dali", False, ""),
        ("dali", NOT_INSTALLED, "tfdata", True, f"loader dali: {NOT_INSTALLED}; reading with tf.data instead"),
        ("tfdata", NOT_INSTALLED, "tfdata", False, ""),
    ]
    for wanted, problem, loader, is_fallback, line in rows:
        monkeypatch.setattr(dali, "unavailable", lambda _, problem=problem: problem)
        choice = choose(wanted, device, strict=False)
        assert choice == Choice(wanted, device, loader, problem if is_fallback else None)
        assert choice.is_fallback == is_fallback
        assert describe(choice) == line


@needs_dali
def test_auto_takes_dali_and_says_so(train: ShardSet, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), opened("auto", train) as loader:
        assert loader.name == "dali"
    assert "dali on the cpu" in caplog.text
