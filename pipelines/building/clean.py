"""One image file becomes a JPEG that every decoder reads alike, or is rejected.

Decided by content, not by name: a baseline or progressive JPEG of one or three components stays as it is, byte for
byte. Whatever else Pillow can read becomes an RGB JPEG: CMYK, PNG, WebP, BMP, GIF and TIFF (first frame), images that
EXIF turns (DALI would turn them, TensorFlow would not; now nobody has to), and on request images that are too large.
Alpha is dropped, as TensorFlow does it.

Every image is decoded from its first row to its last: a decoder that reads only a crop would miss a truncated file. A
JPEG that stays as it is gives a verdict, but nobody needs its pixels, so libjpeg decodes it at an eighth of its size.
That reads every coefficient of every scan and makes one pixel of each block; the inverse transform, which is left out,
takes any numbers. `tests/test_clean.py` compares the verdicts with those of a decoder that makes all pixels.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from pipelines.shards.jpeg import BASELINE, PROGRESSIVE, read_header

# Not everything that Pillow knows: it would start Ghostscript for an EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_ORIENTATION = 0x0112

Result = TypeVar("Result")


class ImageRejected(Exception):
    """The image cannot become a record; the text says why."""


@dataclass(frozen=True)
class CleanImage:
    """A JPEG, its size in pixels, and why it was encoded anew ("" if its bytes are the source's)."""

    encoded: bytes
    height: int
    width: int
    reencoded: str = ""


def clean_image(data: bytes, quality: int = 95, short_side: int | None = None) -> CleanImage:
    """Checks and, where needed, re-encodes one image.

    Args:
        data: the file's bytes.
        quality: JPEG quality of images that are encoded anew.
        short_side: images with a longer shorter side, in pixels, are shrunk to it, and stored with chroma of half
            the resolution (4:2:0): they are shrunk to be decoded fast, which is then a quarter faster. Otherwise
            chroma is kept in full (4:4:4).

    Raises `ImageRejected` if the image cannot be decoded in full or has more pixels than Pillow's bomb limit.
    """
    return _opened(data, partial(_clean, data=data, quality=quality, short_side=short_side))


def check_image(encoded: bytes) -> tuple[int, int]:
    """Height and width of a record's image.

    Raises `ImageRejected` unless it decodes in full and every loader reads the same pixels. That is what `clean_image`
    stores as it is; and JPEGs with an EXIF orientation too, as the original project has them: no loader turns them.
    """
    return _opened(encoded, partial(_check, data=encoded))


def _opened(data: bytes, use: Callable[[Image.Image], Result]) -> Result:
    """What `use` makes of the image, which it has to decode. Raises `ImageRejected`, also for what `use` raises."""
    if not data:
        raise ImageRejected("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.decodermaxblock = len(data)  # all at once: the decoder need not stop and go on
                return use(image)
        except (ImageRejected, MemoryError):  # the latter is the machine's fault, not the image's
            raise
        except Image.UnidentifiedImageError:
            raise ImageRejected("not an image of a known format") from None
        # Pillow raises what its decoders happen to meet (OSError, SyntaxError, struct.error, TypeError, ...);
        # none of it is lost, it becomes the reason.
        except Exception as error:
            raise ImageRejected(f"{type(error).__name__}: {error}") from None


def _check(image: Image.Image, data: bytes) -> tuple[int, int]:
    if reason := _unlike(image, data):
        raise ImageRejected(f"not read alike by all decoders: {reason}")
    return _verify(image)


def _clean(image: Image.Image, data: bytes, quality: int, short_side: int | None) -> CleanImage:
    reason = _unlike(image, data)
    if reason:
        image.load()  # before EXIF is asked for: Pillow turns a TIFF itself, and a PNG may have EXIF behind its pixels
    orientation = _orientation(image)
    reason = reason or (f"EXIF orientation {orientation}" if orientation != 1 else "")
    shrink = short_side is not None and min(image.size) > short_side
    if not reason and not shrink:
        return CleanImage(data, *_verify(image))
    upright = _rgb(ImageOps.exif_transpose(image) if orientation != 1 else image)
    if short_side is not None and shrink:
        scale = short_side / min(upright.size)
        size = (max(short_side, round(upright.width * scale)), max(short_side, round(upright.height * scale)))
        upright = upright.resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    upright.save(stream, "JPEG", quality=quality, subsampling="4:2:0" if shrink else "4:4:4")
    return CleanImage(stream.getvalue(), upright.height, upright.width, reason or "shrunk")


def _verify(image: Image.Image) -> tuple[int, int]:
    """Height and width of a JPEG that decodes, all of it. The image is left at an eighth of them, in pixels."""
    width, height = image.size
    image.draft(None, (1, 1))  # in its colours: as "L" it would pass with chroma that cannot be upsampled
    image.load()
    return height, width


def _unlike(image: Image.Image, data: bytes) -> str:
    """Why the file is not a JPEG that all decoders read alike; "" if it is."""
    if image.format not in ("JPEG", "MPO"):  # MPO: a JPEG with more of them behind it, as cameras write
        return str(image.format)
    header = read_header(data)
    if header.components not in (1, 3):
        return f"{header.components}-component JPEG"
    if header.process not in (BASELINE, PROGRESSIVE) or header.precision != 8:
        return f"JPEG of process {header.process}, {header.precision} bits"
    if header.components == 3 and image.info.get("adobe_transform") == 0:
        return "JPEG stored as RGB"
    return ""


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where there is none or none that can be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError):
        return 1
    return orientation if orientation in range(1, 9) else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits at 255; the high byte is what libpng and TensorFlow take.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageRejected(f"pixels of mode {image.mode} are not 8 or 16 bits deep")
    return image.convert("RGB")
