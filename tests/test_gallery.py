"""The gallery shows one record in each row, rows of loaders agree, and every field of the spec has a picture."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import AugmentSpec
from pipelines.loaders import dali
from pipelines.policy import OPERATIONS, Policy
from tools import gallery

SIZE, STEP = 24, 32


def test_every_parameter_has_a_sweep_of_valid_specs() -> None:
    fields = {field.name for field in dataclasses.fields(AugmentSpec)} - {
        "center_crop",
        "rotation_probability",
        "policy",
    }
    assert set(gallery.SWEEPS) == fields
    assert list(gallery.POLICY) == list(OPERATIONS)
    for sweep in (*gallery.SWEEPS.values(), *gallery.POLICY.values()):
        specs = {AugmentSpec(**changes) for _, changes in sweep}
        assert len(specs) == len(sweep)


def test_rows_agree_and_the_sweep_is_visible(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaders = ["tfdata"] if dali.unavailable("cpu") else ["dali", "tfdata"]
    sweep = [(f"{x:g}", {"contrast": (x, x)}) for x in (0.5, 1.0)]
    monkeypatch.setattr(gallery, "SWEEPS", {"contrast": sweep})
    policies = [("", {"policy": Policy(magnitude=m, names=("solarize",))}) for m in (0, 30)]
    monkeypatch.setattr(gallery, "POLICY", {"solarize": policies})
    flags = [str(tiny_dataset), "--output", str(tmp_path), "--image-size", str(SIZE), "--loader", *loaders]
    assert gallery.main(flags) == 0
    pixels = np.asarray(Image.open(tmp_path / "contrast.png"), np.int32)
    left = pixels.shape[1] - 2 * STEP
    rows = [pixels[30 + row * STEP : 30 + row * STEP + SIZE, left:] for row in range(len(loaders))]
    assert np.abs(rows[0] - rows[-1]).max() <= 1
    half, whole = rows[0][:, :SIZE], rows[0][:, STEP : STEP + SIZE]
    assert whole.std() > 5
    assert np.abs((whole - 127.5) / 2 - (half - 127.5)).max() <= 1  # the same record
    sheet = np.asarray(Image.open(tmp_path / "policy.png"), np.int32)
    left = sheet.shape[1] - 2 * STEP
    plain, inverted = (sheet[30 : 30 + SIZE, left + at : left + at + SIZE] for at in (0, STEP))
    inner = (plain > 0) & (plain < 255)  # a threshold of 255 inverts white, one of 0 inverts all
    assert inner.mean() > 0.5
    np.testing.assert_array_equal(inverted[inner], 255 - plain[inner])
