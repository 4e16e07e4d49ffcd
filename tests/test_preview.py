"""The preview shows the same records in the row of each loader."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kimagenet.commands import preview
from pipelines.loaders import dali

SIZE, STEP = 40, 48


def sheet(dataset: Path, output: Path, *flags: str) -> np.ndarray:
    arguments = [str(dataset), "--output", str(output), "--columns", "5", "--image-size", str(SIZE), *flags]
    assert preview.main(arguments) == 0
    return np.asarray(Image.open(output), np.int32)


@pytest.mark.parametrize("augment", ["full", "evaluation"])
def test_rows_show_the_same_records(tiny_dataset: Path, tmp_path: Path, augment: str) -> None:
    other = "tfdata" if dali.unavailable("cpu") else "dali"
    pixels = sheet(tiny_dataset, tmp_path / "a.png", "--loader", "tfdata", other, "--augment", augment)
    rows = 2 if other == "tfdata" else 3
    assert pixels.shape[0] == 30 + rows * STEP
    left = pixels.shape[1] - 5 * STEP
    bands = [pixels[30 + row * STEP : 30 + row * STEP + SIZE, left:] for row in range(rows)]
    assert np.abs(bands[-1] - bands[1]).mean() < 0.5
    assert np.abs(bands[0] - bands[1]).mean() > 2  # the row of stored images shows the whole images
    assert bands[1][:, :SIZE].std() > 2


def test_titles_are_the_stored_labels_with_any_loader(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    monkeypatch.setattr(preview, "draw_sheet", lambda rows, names: titles.append(names) or Image.new("RGB", (1, 1)))
    for last in ("tfdata", "synthetic"):
        flags = ["--columns=9", "--loader", "tfdata", last]
        assert preview.main([str(tiny_dataset), f"--output={tmp_path / 'a.png'}", *flags]) == 0
    assert titles[0] == titles[1]
    assert len(set(titles[0])) > 1


@pytest.mark.parametrize(
    "wrong",
    [["--loader", "nonsense"], ["--split", "nonsense"], ["--columns", "1000"], ["--output", "missing/sheet.png"]],
)
def test_bad_use_is_one_line(
    tiny_dataset: Path, tmp_path: Path, wrong: list[str], capsys: pytest.CaptureFixture
) -> None:
    arguments = [str(tiny_dataset), "--output", str(tmp_path / "a.png"), "--loader", "tfdata", *wrong]
    assert preview.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP"), ("a.png", "PNG")]
)
def test_the_name_decides_the_format(name: str, kind: str, tiny_dataset: Path, tmp_path: Path) -> None:
    flags = ["--loader", "tfdata", "--columns=2", "--image-size=16"]
    assert preview.main([str(tiny_dataset), f"--output={tmp_path / name}", *flags]) == 0
    with Image.open(tmp_path / name) as image:
        assert image.format == kind


def test_another_name_is_refused(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preview.main([str(tiny_dataset), f"--output={tmp_path / 'a.txt'}"]) == 2
    assert "a.txt: not the name of a picture; end it with .png or .jpg or .jpeg or .webp" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
