"""If nothing turns, the edges of a crop repeat, as in crop-then-resize: in loaders, evaluation and exports."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipelines import AugmentSpec, BatchSpec, ShardSet, open_loader
from pipelines.images import ImageReader
from pipelines.loaders.dali import native
from pipelines.tf_image import Work, evaluation_work, paint, render
from pipelines.uniform import RecordUniform
from tests.helpers.data import jpeg, write_tiny_dataset
from tests.test_loaders import PIXELS, READING

ENLARGED = 160  # pixels: larger than every image of the data set
SPECS = {
    "standard": AugmentSpec.standard(),
    "none": AugmentSpec(),
    "evaluation": AugmentSpec.evaluation(),
    "evaluation as the original": AugmentSpec.evaluation(1.0),
}


@pytest.fixture(scope="module")
def white(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    def draw(rng: np.random.Generator, label: int, height: int, width: int) -> Image.Image:
        return Image.new("RGB", (width, height), "white")

    return ShardSet.open(write_tiny_dataset(tmp_path_factory.mktemp("white"), draw=draw), "train")


def one_batch(name: str, shards: ShardSet, spec: AugmentSpec) -> np.ndarray:
    batch = BatchSpec(16, ENLARGED, "uint8")
    with open_loader(name, shards, batch, spec, workers=1, device="cpu", strict=True) as loader:
        return next(iter(loader.epoch(0)))[0].numpy()


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.parametrize("spec", SPECS)
def test_white_stays_white_to_the_last_pixel(
    white: ShardSet, name: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.endswith("stock operators"):
        monkeypatch.setattr(native, "available", lambda: False)
    assert one_batch(name.split(",")[0], white, SPECS[spec]).min() == 255


@pytest.mark.parametrize("name", READING)
def test_if_images_can_turn_outside_is_black_for_straight_ones_too(white: ShardSet, name: str) -> None:
    whole = {"crop_aspect": (0.1, 10.0)}  # the crop is all of the image, and so is its box
    straight = one_batch(name, white, AugmentSpec(**whole, rotation=1.0, rotation_probability=1e-9))
    assert straight[:, [0, 0, -1, -1], [0, -1, 0, -1]].max() < 250
    assert straight[:, 20:-20, 20:-20].min() == 255


@pytest.mark.parametrize("crop_ratio", [1.0, 0.875])
def test_white_stays_white_where_files_are_read_and_exported(crop_ratio: float) -> None:
    spec, batch = AugmentSpec.evaluation(crop_ratio), BatchSpec(1, 64, "uint8")
    for size in ((20, 33), (1, 1), (2, 61), (64, 64), (63, 65), (200, 90)):
        encoded = jpeg(Image.new("RGB", size, "white"))
        assert ImageReader(batch, spec).pixels(encoded).min() == 255
        assert (
            render(
                tf.constant(encoded),
                evaluation_work(tf.image.extract_jpeg_shape(encoded)[:2], batch, spec),
                batch,
                spec,
            )
            .numpy()
            .min()
            == 255
        )


@pytest.mark.parametrize("size", [16, 48, 200])
def test_a_resize_gives_what_the_matrix_says(size: int) -> None:
    """Shrunk and enlarged, mirrored and not: noise of full contrast differs by at most 0.01 grey levels."""
    rng = np.random.default_rng(size)
    spec, batch = AugmentSpec.standard(), BatchSpec(1, size)
    image = rng.integers(0, 256, (90, 120, 3)).astype(np.uint8)
    sides = np.full((2, 12), [[90], [120]])
    works = Work.of(spec.draw(RecordUniform(0, 0, np.arange(12)), *sides, size), batch, spec)
    assert works.resize.all()
    for work in (Work(*(part[i] for part in works)) for i in range(12)):
        y, x, height, width = work.box
        region = tf.constant(image[y : y + height, x : x + width])
        resized, warped = (paint(region, work._replace(resize=tf.constant(r)), batch, spec) for r in (True, False))
        assert np.abs(resized - warped).max() * 127.5 < 1e-2
