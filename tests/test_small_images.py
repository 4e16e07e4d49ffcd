"""Images of 1 to 5 pixels: loaders agree with `tests.helpers.oracle`, whatever the shape of the planned box."""

import numpy as np
import pytest
from PIL import Image

from pipelines import AugmentSpec, ShardSet
from pipelines.loaders.dali import native
from pipelines.uniform import RecordUniform
from tests.helpers import oracle
from tests.helpers.data import write_tiny_dataset
from tests.test_loaders import PIXELS, SPECS, opened, read, record


def noise(rng: np.random.Generator, label: int, height: int, width: int) -> Image.Image:
    """Grey levels of full contrast. Decoders of regions interpolate the chroma of such images in different ways."""
    return Image.fromarray(rng.integers(0, 256, (height, width)).astype(np.uint8)).convert("RGB")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """101 images, so most of the 25 shapes, in four kinds of JPEG."""
    return ShardSet.open(write_tiny_dataset(tmp_path_factory.mktemp("small"), draw=noise, sides=(1, 5)), "train")


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.parametrize("spec", [*SPECS, "none"])
def test_small_images_agree_with_the_oracle(
    small: ShardSet, name: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DALI's stock warp rounds to whole grey levels and, as tfdata's resize, has its own rounding of positions."""
    stock = name.endswith("stock operators")
    if stock:
        monkeypatch.setattr(native, "available", lambda: False)
    augment = {**SPECS, "none": AugmentSpec(flip=1.0)}[spec]
    with opened(name.split(",")[0], small, augment=augment) as loader:
        images = (read(loader)[0].astype(np.float64) + 1) * 127.5
        numbers = loader.plan(0).records
    uniform = RecordUniform(0, 0, numbers)
    table = {column: uniform(column) for column in range(oracle.COLUMNS)}
    worst = 0.0
    for place, number in enumerate(numbers):
        u = {column: float(values[place]) for column, values in table.items()}
        worst = max(worst, np.abs(images[place] - oracle.expected(record(small, number)[0], augment, u, 48)).max())
    assert worst < (8 if stock else 0.5)


def test_the_data_set_has_thin_images(small: ShardSet) -> None:
    shapes = {tuple(size) for size in small.sizes.tolist()}
    assert {(1, 1), (1, 2), (2, 1), (2, 2), (5, 1), (1, 5), (5, 2), (2, 5)} <= shapes
