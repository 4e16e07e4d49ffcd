"""Makes a JPEG that all decoders read alike of one image file, or rejects the file.

The content decides, not the file name. A baseline or progressive JPEG with one or three components is kept byte for
byte. Everything else that Pillow can read becomes an RGB JPEG: CMYK, PNG, WebP, BMP, GIF and TIFF (first frame), and
images with an EXIF orientation (DALI applies it, TensorFlow does not). On request large images are shrunk. Alpha is
dropped, as in TensorFlow.

Every image is decoded from its first row to its last: a decoder that reads only a crop would miss a truncated file. The
pixels of a JPEG that is kept are not needed, so libjpeg decodes it at an eighth of its size. This reads every
coefficient of every scan and makes one pixel of each block. It leaves out the inverse transform, which accepts any
numbers. `tests/test_clean.py` compares the verdicts with those of a full decode.
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

# Not all formats of Pillow: for an EPS it would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_ORIENTATION = 0x0112

Result = TypeVar("Result")


class ImageRejected(Exception):
    """The image cannot become a record. The message is the reason."""


@dataclass(frozen=True)
class CleanImage:
    """A JPEG that can be stored.

    Attributes:
        encoded: the bytes of the JPEG.
        height: in pixels.
        width: in pixels.
        reencoded: why the image was encoded again; "" if the bytes are those of the source.
    """

    encoded: bytes
    height: int
    width: int
    reencoded: str = ""


def clean_image(data: bytes, quality: int = 95, short_side: int | None = None) -> CleanImage:
    """Checks one image and encodes it again where needed.

    Args:
        data: the bytes of the file.
        quality: JPEG quality of images that are encoded again.
        short_side: images with a longer shorter side, in pixels, are shrunk to this one and stored with half the
            chroma resolution (4:2:0), which decodes a quarter faster. Other images keep full chroma (4:4:4).

    Returns:
        The JPEG to store.

    Raises:
        ImageRejected: the image cannot be decoded in full, or has more pixels than Pillow's limit for decompression
            bombs.
    """
    return _opened(data, partial(_clean, data=data, quality=quality, short_side=short_side))


def check_image(encoded: bytes) -> tuple[int, int]:
    """Checks the image of a record.

    Accepts what `clean_image` keeps byte for byte, and JPEGs with an EXIF orientation: the original project stores
    them, and no loader applies the orientation.

    Args:
        encoded: the bytes of the image.

    Returns:
        Height and width in pixels.

    Raises:
        ImageRejected: the image cannot be decoded in full, or loaders would read different pixels.
    """
    return _opened(encoded, partial(_check, data=encoded))


def _opened(data: bytes, use: Callable[[Image.Image], Result]) -> Result:
    """Opens an image and returns the result of `use`, which decodes it. All errors become `ImageRejected`."""
    if not data:
        raise ImageRejected("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                image.decodermaxblock = len(data)  # one block: the decoder does not have to stop and continue
                return use(image)
        except (ImageRejected, MemoryError):  # too little memory is a fault of the machine, not of the image
            raise
        except Image.UnidentifiedImageError:
            raise ImageRejected("not an image of a known format") from None
        # Pillow raises many types (OSError, SyntaxError, struct.error, TypeError, ...); each becomes the reason.
        except Exception as error:
            raise ImageRejected(f"{type(error).__name__}: {error}") from None


def _check(image: Image.Image, data: bytes) -> tuple[int, int]:
    if reason := _unlike(image, data):
        raise ImageRejected(f"decoders may read it differently: {reason}")
    return _verify(image)


def _clean(image: Image.Image, data: bytes, quality: int, short_side: int | None) -> CleanImage:
    reason = _unlike(image, data)
    if reason:
        image.load()  # before EXIF is read: Pillow turns a TIFF itself, and a PNG may have its EXIF after its pixels
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
    """Decodes a whole JPEG at an eighth of its size. Returns the full height and width in pixels."""
    width, height = image.size
    image.draft(None, (1, 1))  # in colour: as "L" a JPEG with chroma that cannot be upsampled would pass
    image.load()
    return height, width


def _unlike(image: Image.Image, data: bytes) -> str:
    """Why decoders may read the file differently; "" if they all read the same."""
    if image.format not in ("JPEG", "MPO"):  # MPO: a JPEG followed by more JPEGs, as some cameras write
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
    """The EXIF orientation, 1 to 8; 1 (upright) if there is none or it cannot be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError):
        return 1
    return orientation if orientation in range(1, 9) else 1


def _rgb(image: Image.Image) -> Image.Image:
    """The image with 8 bits for each of red, green and blue."""
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits at 255. libpng and TensorFlow keep the high byte.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageRejected(f"samples of mode {image.mode} do not have 8 or 16 bits")
    return image.convert("RGB")
