"""A JPEG that ends too early has one verdict, whatever its last bits: it is kept if all its pixels are there.

The builder, the checker and TensorFlow's decoder agree about what is stored.
"""

import io
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipelines.building import clean
from pipelines.building.clean import ImageRejected, check_image, clean_image
from pipelines.building.jpeg_end import END, all_pixels, has_end
from tests.helpers.data import photo
from tests.helpers.fuzz import mutate
from tests.helpers.jpegs import JPEGS

DAMAGES = int(os.environ.get("FUZZ_EXAMPLES", "60"))


def encode(number: int, mode: str = "RGB", **options: object) -> bytes:
    rng = np.random.default_rng(number)
    stream = io.BytesIO()
    photo(rng, number, *rng.integers(9, 60, 2)).convert(mode).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def accepts(data: bytes) -> bool:
    try:
        clean_image(data)
    except ImageRejected:
        return False
    return True


@pytest.mark.parametrize("kind", JPEGS)
def test_only_the_end_marker_is_missing(kind: str) -> None:
    """It gets one, and no other byte changes: of 40 pictures Pillow alone would refuse some."""
    mode, options = JPEGS[kind]
    for number in range(40):
        good = encode(number, mode, **options)
        for missing in (1, 2):
            image = clean_image(good[:-missing])
            assert (image.encoded, image.reencoded) == (good, "JPEG without end marker")
            tf.io.decode_jpeg(image.encoded)
            with pytest.raises(ImageRejected, match="decoders may read it differently: JPEG without end marker"):
                check_image(good[:-missing])


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@pytest.mark.parametrize("kind", JPEGS)
def test_every_length(kind: str) -> None:
    """A JPEG that is kept has all pixels of the whole one, and one that is much shorter is refused.

    A byte or two may belong to blocks beyond the edge of the picture.
    """
    mode, options = JPEGS[kind]
    for number in range(5):
        good = encode(number, mode, **options)
        kept = 0
        for missing in range(3, 60):
            try:
                image = clean_image(good[:-missing])
            except ImageRejected:
                continue
            kept += 1
            assert np.array_equal(pixels(image.encoded), pixels(good)), missing
        assert kept <= 3


def test_a_progressive_jpeg_that_lacks_its_last_scan_is_truncated() -> None:
    """All its scans are whole, and a decoder sees no fault."""
    good = encode(2, progressive=True)
    without = good[: good.rindex(b"\xff\xda")]
    with Image.open(io.BytesIO(without + END)) as image:
        image.load()
    assert not all_pixels(without)
    assert not accepts(without)


def test_an_end_marker_within_a_segment_is_none() -> None:
    """Decoders skip the segment, and run out of bytes."""
    good = encode(3)
    assert has_end(good)
    behind = good[:-2] + b"\xff\xfe\x00\x09" + END + bytes(3)
    assert not has_end(behind)
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.io.decode_jpeg(behind)
    with pytest.raises(ImageRejected, match="without end marker"):
        check_image(behind)


def test_bytes_behind_the_end_marker_change_nothing() -> None:
    good = encode(4)
    for data in (good + b"trailer", good + good, good[:-2] + bytes(9) + END):
        assert clean_image(data).encoded == data
        tf.io.decode_jpeg(data)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", JPEGS)
def test_tensorflow_decodes_whatever_is_stored(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Of damaged JPEGs, too. Before the end marker was looked for, it refused 26 of 1,958."""
    monkeypatch.setattr(clean, "MOST_PIXELS", 1 << 20)  # damaged sizes would take long
    mode, options = JPEGS[kind]
    good = encode(5, mode, **options)
    rng = np.random.default_rng(0)
    stored = 0
    for _ in range(DAMAGES):
        try:
            image = clean_image(mutate(rng, good, good))
        except ImageRejected:
            continue
        stored += 1
        assert tf.io.decode_jpeg(image.encoded, channels=3).shape[:2] == (image.height, image.width)
        assert check_image(image.encoded) == (image.height, image.width)
    assert stored
