"""tools.try_models and tools.plot_runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from tools import plot_runs, try_applications, try_models


@pytest.mark.slow
def test_try_models(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "models.md"
    flags = ["--models", "demo", "--loaders", "tfdata", "--image-size=32", "--batches=2", "--passes=4"]
    assert try_models.main([str(tiny_dataset), f"--output={output}", *flags]) == 0
    rows = [line for line in output.read_text().splitlines() if line.startswith("| demo |")]
    assert len(rows) == 1
    first, last = (float(loss) for loss in rows[0].split("|")[2].split("→"))
    assert 0 < last < first
    assert float(rows[0].split("|")[3]) <= 1e-6
    assert "demo: " in capsys.readouterr().out


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    found = []
    for name, top1 in (("a", 0.5), ("b", 0.75)):
        run = RunDirectory(tmp_path / name)
        run.begin(Recipe(epochs=3, iter_size=4), {})
        lines: list[dict] = [{"event": "start"}]
        lines += [
            {"event": "epoch", "global_step": 8 * n + 8, "loss": 2 / (n + 1), "val_top1": top1 * n / 2}
            for n in range(3)
        ]
        run.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        found.append(run.path)
    return found


def test_plot_runs(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "curves.png"
    flags = [*map(str, runs), f"--output={output}", "--names", "original", "modern"]
    assert plot_runs.main(flags) == 0
    assert "modern: validation top-1 75.00% after 3 of 3 epochs" in capsys.readouterr().out
    assert Image.open(output).width > 500
    axes = plot_runs.draw({path.name: plot_runs.Curves.read("x", [RunDirectory(path)]) for path in runs}).axes
    assert [list(line.get_ydata()) for line in axes[0].lines] == [[0, 25, 50], [0, 37.5, 75]]
    assert list(axes[0].lines[0].get_xdata()) == [1, 2, 3]
    assert not axes[0].collections


def test_plot_runs_averages_runs_of_one_name(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib")
    flags = [*map(str, runs), f"--output={tmp_path / 'curves.png'}", "--names", "sgd", "sgd", "--updates"]
    assert plot_runs.main(flags) == 0
    assert "sgd: validation top-1 62.50% (50.00% to 75.00% in 2 runs) after 3 of 3 epochs" in capsys.readouterr().out
    curves = plot_runs.Curves.read("sgd", [RunDirectory(path) for path in runs])
    axes = plot_runs.draw({"sgd": curves}, by_updates=True).axes
    assert [list(line.get_ydata()) for line in axes[0].lines] == [[0, 31.25, 62.5]]
    assert list(axes[0].lines[0].get_xdata()) == [2, 4, 6]
    assert {tuple(point) for point in axes[0].collections[0].get_paths()[0].vertices} >= {(6.0, 50.0), (6.0, 75.0)}


def test_plot_runs_reports_wrong_arguments(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = RunDirectory(runs[0]).log
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    for flags, message in (
        ([str(tmp_path / "no"), "--names", "x"], "not a run directory"),
        ([str(runs[0]), "--names", "x", "y"], "2 names for 1 runs; give one name for each run (--names)"),
        (
            [*map(str, runs), "--names", "x", "x"],
            "the runs named x have different numbers of epochs: 2, 3; give them different names (--names)",
        ),
    ):
        output = f"--output={tmp_path / 'curves.png'}"
        assert plot_runs.main([*flags, output]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_of_keras_evaluates_as_in_keras(tiny_dataset: Path, tmp_path: Path) -> None:
    """One with the range that differs most from ours."""
    row = try_applications.try_network("VGG16", tiny_dataset, 25, tmp_path)
    assert row["loss"] == pytest.approx(row["Keras' loss"], rel=try_applications.MAX_DIFFERENCE)
    assert abs(row["loss"] - np.log(10)) > 0.05  # not that of equal probabilities
    assert row["top-1"] == pytest.approx(row["Keras' top-1"])
