"""Makes a JPEG that all decoders read alike of one image file, or rejects the file.

The content decides, not the file name. A baseline or progressive JPEG with one or three components is kept byte for
byte. Everything else that Pillow can read becomes an RGB JPEG: CMYK, PNG, WebP, BMP, GIF and TIFF (first frame), and
images with an EXIF orientation (DALI applies it, TensorFlow does not). On request large images are shrunk. Alpha is
dropped, as in TensorFlow. Metadata is not kept where an image is encoded again, and removed where it cannot be read: it
does not decide about pixels that can.

Every image is decoded from its first row to its last: a decoder that reads only a crop would miss a truncated file. The
pixels of a JPEG that is kept are not needed, so libjpeg decodes it at an eighth of its size. This reads every
coefficient of every scan and makes one pixel of each block. It leaves out the inverse transform, which accepts any
numbers. `tests/test_clean.py` compares the verdicts with those of a full decode. A JPEG needs its end marker; one that
lacks nothing else gets it.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pipelines.building import jpeg_end
from pipelines.building.formats import describe
from pipelines.building.metadata import without_metadata
from pipelines.building.pixels import UnknownSamples, decode, to_rgb
from pipelines.shards.jpeg import BASELINE, PROGRESSIVE, read_header
from pipelines.shards.shard_set import MOST_PIXELS
from pipelines.system.pillow import without_limit_and_warnings

# Not all formats of Pillow: for an EPS it would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_JPEG_START = b"\xff\xd8"
_NO_END = "JPEG without end marker"
_ORIENTATION = 0x0112
# What makes pixels upright that are stored with an orientation (EXIF 2.32, 4.6.4).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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
        ImageRejected: the image cannot be decoded in full, or has more than `MOST_PIXELS`.
    """
    clean = partial(_clean, quality=quality, short_side=short_side)
    if not data.startswith(_JPEG_START) or jpeg_end.has_end(data):
        return _opened(data, clean)
    image = _opened(jpeg_end.with_end(data), clean)
    if not jpeg_end.all_pixels(data):
        raise ImageRejected("JPEG is truncated: the end marker is missing, and so are pixels")
    return replace(image, reencoded=image.reencoded or _NO_END)


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
    return _opened(encoded, _check)


def peculiarity(image: Image.Image, head: bytes) -> str:
    """Why `clean_image` would not keep an image as it is, as far as its header says it; "" if it would.

    Args:
        image: the image, opened and not decoded.
        head: its bytes, at least those before the pixels.
    """
    orientation = _orientation(image)
    return _unlike(image, head) or (f"EXIF orientation {orientation}" if orientation != 1 else "")


def _opened(data: bytes, use: Callable[[Image.Image, bytes], Result]) -> Result:
    """Opens an image and returns the result of `use`; if that fails, once more without its metadata."""
    try:
        return _opened_once(data, use)
    except ImageRejected:
        if (bare := without_metadata(data)) == data:
            raise
        try:
            return _opened_once(bare, use)
        except ImageRejected:
            pass
        raise


def _opened_once(data: bytes, use: Callable[[Image.Image, bytes], Result]) -> Result:
    """Opens an image and returns the result of `use`, which decodes it. All errors become `ImageRejected`."""
    if not data:
        raise ImageRejected("the file is empty")
    name = ""
    with without_limit_and_warnings():
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                name = image.format or ""
                if (pixels := image.width * image.height) > MOST_PIXELS:
                    raise ImageRejected(f"{pixels:,} pixels are too many; the limit is {MOST_PIXELS:,}")
                image.decodermaxblock = len(data)  # one block: the decoder does not have to stop and continue
                return use(image, data)
        except (ImageRejected, MemoryError):  # too little memory is a fault of the machine, not of the image
            raise
        except Image.UnidentifiedImageError:
            found = describe(data)
            raise ImageRejected("not an image of a known format" + f": {found}" * bool(found)) from None
        except UnknownSamples as error:
            raise ImageRejected(f"samples of an unknown meaning: {error}") from None
        # Pillow raises many types (OSError, SyntaxError, struct.error, TypeError, ...); each becomes the reason.
        except Exception as error:
            what = f"{describe(data) or name} cannot be decoded"
            raise ImageRejected(f"{what} ({type(error).__name__}: {error})") from None


def _check(image: Image.Image, data: bytes) -> tuple[int, int]:
    if reason := _unlike(image, data) or _NO_END * (not jpeg_end.has_end(data)):
        raise ImageRejected(f"decoders may read it differently: {reason}")
    return _verify(image)


def _clean(image: Image.Image, data: bytes, quality: int, short_side: int | None) -> CleanImage:
    reason = _unlike(image, data)
    decoded = decode(image) if reason else None  # before EXIF is read: a PNG may have it after its pixels
    orientation = _orientation(image)
    reason = reason or (f"EXIF orientation {orientation}" if orientation != 1 else "")
    shrink = short_side is not None and min(image.size) > short_side
    if not reason and not shrink:
        return CleanImage(data, *_verify(image))
    upright = to_rgb(decoded or decode(image), image)
    if orientation != 1:
        upright = upright.transpose(_UPRIGHT[orientation])
    if short_side is not None and shrink:
        scale = short_side / min(upright.size)
        size = (max(short_side, round(upright.width * scale)), max(short_side, round(upright.height * scale)))
        upright = upright.resize(size, Image.Resampling.LANCZOS)
    upright.info = {}  # metadata that cannot be written must not cost the picture
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
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else image.getexif()
        orientation = tags.get(_ORIENTATION, 1)
    except Exception:  # Pillow raises many types for damaged EXIF
        return 1
    return orientation if orientation in _UPRIGHT else 1
