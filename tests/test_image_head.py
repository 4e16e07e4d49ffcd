"""The head of an image says what the builder would do with it."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.building.clean import clean_image
from pipelines.building.image_head import read_image_head
from tests.helpers.data import jpeg, photo
from tests.helpers.sources import nasty

GOOD = jpeg(photo(np.random.default_rng(0), 0, 40, 30))
UNDECODABLE = ("half.JPEG", "nine bytes short.JPEG", "empty.JPEG", "random.JPEG", "notes.txt", "x.jpg")
FILES = {name: data for name, data in nasty(GOOD).items() if data is not None and name not in UNDECODABLE}


def with_adobe_rgb() -> bytes:
    """A JPEG that stores RGB, as its Adobe segment says."""
    stream = io.BytesIO()
    photo(np.random.default_rng(0), 0, 40, 30).save(stream, "JPEG", keep_rgb=True)
    return stream.getvalue()


@pytest.mark.parametrize("name", FILES)
def test_the_head_says_why_the_builder_would_encode_an_image_again(name: str) -> None:
    stored = clean_image(FILES[name])
    head = read_image_head(memoryview(FILES[name]))
    wanted = "" if stored.reencoded == "JPEG without end marker" else stored.reencoded  # the head does not say that
    assert head.peculiarity == wanted
    with Image.open(io.BytesIO(FILES[name])) as image:
        assert head.size == (image.height, image.width)


def test_a_jpeg_of_rgb() -> None:
    data = with_adobe_rgb()
    assert read_image_head(memoryview(data)).peculiarity == clean_image(data).reencoded != ""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.open(io.BytesIO(GOOD)).save(stream, "JPEG", exif=exif)
    head = read_image_head(memoryview(stream.getvalue()))
    assert head.peculiarity == (f"EXIF orientation {orientation}" if orientation > 1 else "")
    assert head.size == (40, 30)


@pytest.mark.parametrize("data", [b"", b"x", b"\xff\xd8", b"\xff\xd8\xff\xe1\x00\x08Exif", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_has_no_size(data: bytes) -> None:
    assert read_image_head(memoryview(data)).size is None
    assert read_image_head(memoryview(data)).peculiarity == ""


def test_damaged_exif_decides_nothing() -> None:
    """As in the builder."""
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff"
    data = GOOD[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + GOOD[2:]
    assert read_image_head(memoryview(data)) == read_image_head(memoryview(GOOD))
