"""Pillow without its limit against decompression bombs, which large cameras exceed."""

from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image


@contextmanager
def without_pixel_limit() -> Iterator[None]:
    """Within it, Pillow opens images of any size; afterwards its limit is what it was before."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
