"""Names what a file is that is not an image, or not one that can be decoded: for the reasons of rejection."""

import io
from collections.abc import Callable

from PIL import TiffImagePlugin, TiffTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_HEAD = 1024  # bytes that are looked at

# (name, byte of the signature, signature), the first that fits
_SIGNATURES: tuple[tuple[str, int, bytes], ...] = (
    ("a Git LFS pointer, not the file (`git lfs pull` downloads it)", 0, b"version https://git-lfs.github.com/spec/"),
    ("a GZIP file", 0, b"\x1f\x8b"),
    ("a ZIP file", 0, b"PK\x03\x04"),
    ("a 7-Zip file", 0, b"7z\xbc\xaf\x27\x1c"),
    ("a bzip2 file", 0, b"BZh"),
    ("an XZ file", 0, b"\xfd7zXZ"),
    ("a Zstandard file", 0, b"\x28\xb5\x2f\xfd"),
    ("a RAR file", 0, b"Rar!"),
    ("a tar", 257, b"ustar"),
    ("a PDF", 0, b"%PDF"),
    ("a PostScript file", 0, b"%!PS"),
    ("a Photoshop file", 0, b"8BPS"),
    ("a JPEG XL image", 0, b"\xff\x0a"),
    ("a JPEG XL image", 0, b"\x00\x00\x00\x0cJXL \x0d\x0a"),
    ("a JPEG 2000 image", 0, b"\x00\x00\x00\x0cjP  \x0d\x0a"),
    ("a JPEG 2000 image", 0, b"\xff\x4f\xff\x51"),
    ("a Windows icon", 0, b"\x00\x00\x01\x00"),
    ("an OpenEXR image", 0, b"\x76\x2f\x31\x01"),
    ("a Radiance HDR image", 0, b"#?RADIANCE"),
    ("a DDS image", 0, b"DDS "),
    ("a FITS image", 0, b"SIMPLE  ="),
    ("a DICOM image", 128, b"DICM"),
    ("a NumPy array", 0, b"\x93NUMPY"),
    ("an HDF5 file", 0, b"\x89HDF"),
    ("an AVI video", 8, b"AVI "),
    ("a Matroska video", 0, b"\x1a\x45\xdf\xa3"),
    ("a JPEG", 0, b"\xff\xd8\xff"),
    ("a PNG", 0, b"\x89PNG"),
    ("a WebP", 8, b"WEBP"),
    ("a GIF", 0, b"GIF8"),
    ("a BMP", 0, b"BM"),
)
_TIFF_HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SAMPLE_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "undefined", 5: "complex", 6: "complex"}


def describe(data: bytes) -> str:
    """What a file is, with its article; "" if it is not known."""
    head = data[:_HEAD]
    for name, start, signature in _SIGNATURES:
        if head.startswith(signature, start):
            return name
    for look in (_iso_media, _tiff, _markup):
        if name := look(data):
            return name
    return "only zeros" if head and not any(head) else ""


def describe_tiff(tags: Callable[[int, object], object]) -> str:
    """The kind of samples of a TIFF, from its tags: `tags` is `get` of a directory."""
    bits = _numbers(tags(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    kinds = _numbers(tags(TiffImagePlugin.SAMPLEFORMAT, (1,)))
    photometric = tags(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, "missing")
    known = TiffTags.lookup(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION).enum
    meaning = next((name for name, value in known.items() if value == photometric), photometric)
    kind = " ".join(dict.fromkeys(_SAMPLE_FORMATS.get(number, f"format {number}") for number in kinds))
    return f"a TIFF of {'+'.join(map(str, bits))} bits, {kind} samples, photometric interpretation {meaning}"


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)  # type: ignore[return-value]


def _tiff(data: bytes) -> str:
    if not data.startswith(_TIFF_HEADERS):
        return ""
    try:
        stream = io.BytesIO(data)
        directory = ImageFileDirectory_v2(stream.read(16 if data[2:3] == b"+" or data[3:4] == b"+" else 8))
        stream.seek(directory.next)
        directory.load(stream)
        return describe_tiff(directory.get)
    except Exception:  # whatever Pillow raises for damaged tags
        return "a TIFF"


def _iso_media(data: bytes) -> str:
    """AVIF, HEIC and videos have boxes of one kind; the first lists what can read them."""
    if data[4:8] != b"ftyp":
        return ""
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[start : start + 4] for start in range(16, size, 4))}
    if brands & {b"avif", b"avis"}:
        return "an AVIF image"
    if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}:
        return "a HEIC image"
    return "a video or another file of the MP4 family"


def _markup(data: bytes) -> str:
    start = data[:_HEAD].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if b"<svg" in start and start.startswith((b"<?xml", b"<svg", b"<!--", b"<!doctype")):
        return "an SVG image"
    if start.startswith(b"<?xml"):
        return "an HTML page" if b"<html" in start else "an XML file"
    return "JSON" if start.startswith((b'{"', b"[{")) else ""
