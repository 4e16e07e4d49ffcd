"""Makes 8-bit RGB of an image of any format: the format says what its samples mean, not the mode that Pillow gives it.

Samples whose meaning is not known are refused.
"""

import numpy as np
from PIL import Image, TiffImagePlugin

from pipelines.building.formats import describe_tiff

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE, _CMYK, _YCBCR = 0, 1, 3, 5, 6  # photometric interpretations of TIFF 6.0
_COLOR_MAP, _INK_SET, _DOT_RANGE, _SUBSAMPLING = 320, 332, 336, 530
_UNSIGNED = {1, 4}  # sample formats; 4 is undefined, for which readers take unsigned


class UnknownSamples(Exception):
    """The meaning of an image's samples is not known; the message names them."""


def decode(image: Image.Image) -> Image.Image:
    """Decodes all pixels, in the order in which they are stored."""
    if image.format == "TIFF":
        _check_tiff(image)
        # Pillow would turn a TIFF and write its EXIF again, which fails for some tags.
        image.load_end = lambda: None  # type: ignore[attr-defined]
        image.load()
        return image.copy()  # whose size is that of the stored pixels
    image.load()
    return image


def to_rgb(decoded: Image.Image, source: Image.Image) -> Image.Image:
    """The pixels as RGB of 8 bits; alpha is dropped.

    Args:
        decoded: the pixels.
        source: the image as it was opened.

    Returns:
        An image without metadata.

    Raises:
        UnknownSamples: samples cannot be converted.
    """
    tags = source.tag_v2 if isinstance(source, TiffImagePlugin.TiffImageFile) else {}
    has_adobe = "adobe" in source.info
    decoded.info = {}  # such as a transparent colour, which conversions would look at
    if decoded.mode.startswith("I;16") or (decoded.mode == "I" and source.format == "PPM"):
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
        grey = (np.asarray(decoded).astype(np.uint32) >> (bits - 8)).astype(np.uint8)  # the high bits, as libpng does
        inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
        return Image.fromarray(255 - grey if inverted else grey).convert("RGB")
    if decoded.mode in ("I", "F", "LAB"):
        kind = {"I": "32-bit", "F": "floating-point", "LAB": "CIELAB"}[decoded.mode]
        raise UnknownSamples(describe_tiff(tags.get) if tags else f"a {source.format} with {kind} samples")
    if decoded.mode == "CMYK" and source.format in ("JPEG", "MPO") and not has_adobe:
        decoded = decoded.point([255 - value for value in range(256)] * 4)  # Pillow takes all for Adobe's polarity
    if decoded.mode == "P" and max(tags.get(_COLOR_MAP, (256,))) < 256:
        decoded.putpalette(np.array(tags[_COLOR_MAP], np.uint8).reshape(3, -1).T.tobytes())  # 8 bits, where 16 belong
    if decoded.mode == "La":
        decoded = decoded.convert("LA")
    return decoded.convert("RGB")


def _check_tiff(image: Image.Image) -> None:
    """Refuses samples that Pillow would read as others."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
    plain = _UNSIGNED.issuperset(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)))
    deep = image.mode.startswith("I;16") and photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    inks = photometric == _CMYK and (tags.get(_INK_SET, 1) != 1 or tags.get(_DOT_RANGE, (0,))[0] != 0)
    coarse = image.mode == "YCbCr" and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1)
    if photometric is None or not plain or deep or inks or coarse:
        more = " of special inks" * inks + " with fewer chroma samples" * coarse
        raise UnknownSamples(describe_tiff(tags.get) + more)
