"""Metadata that cannot be read or written does not cost a picture, and what is no image is named."""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipelines.building.clean import ImageRejected, check_image, clean_image
from pipelines.building.metadata import without_metadata
from tests.helpers.data import photo
from tests.helpers.layouts import tar

PICTURE = photo(np.random.default_rng(1), 1, 40, 60)
ORIENTATION = 0x112


def encode(kind: str, image: Image.Image = PICTURE, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif(*tags: tuple[int, int, int, bytes], extra: bytes = b"") -> bytes:
    """A TIFF directory of (tag, type, count, value) entries, for an EXIF block."""
    body = struct.pack("<H", len(tags))
    body += b"".join(struct.pack("<HHL", *tag[:3]) + tag[3].ljust(4, b"\0") for tag in sorted(tags)) + bytes(4)
    return b"II*\0" + struct.pack("<L", 8) + body + extra


def turned(*tags: tuple[int, int, int, bytes], extra: bytes = b"") -> bytes:
    """The same with orientation 6."""
    return exif((ORIENTATION, 3, 1, struct.pack("<H", 6)), *tags, extra=extra)


BEHIND = struct.pack("<L", 8 + 2 + 2 * 12 + 4)  # the offset of `extra` for two tags
ODD_TAGS: dict[str, bytes] = {
    "resolution 1/0": turned((0x11A, 5, 1, BEHIND), extra=struct.pack("<LL", 1, 0)),
    "resolution negative": turned((0x11A, 10, 1, BEHIND), extra=struct.pack("<ll", -72, 1)),
    "resolution infinite": turned((0x11A, 12, 1, BEHIND), extra=struct.pack("<d", float("inf"))),
    "value of 8 bytes": turned((0x9999, 16, 1, BEHIND), extra=struct.pack("<Q", 2**50)),
    "offset beyond the end": turned((0x9999, 2, 4000, struct.pack("<L", 10**6))),
    "sub-directory beyond the end": turned((0x8769, 4, 1, struct.pack("<L", 10**6))),
    "sub-directory that is itself": turned((0x8769, 4, 1, struct.pack("<L", 8))),
    "unknown type": turned((0x9999, 99, 1, b"")),
}


def in_jpeg(block: bytes) -> bytes:
    data, body = encode("JPEG", quality=95), b"Exif\0\0" + block
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def chunk(name: bytes, body: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + body) if crc is None else crc
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", crc)


def in_png(*chunks: bytes) -> bytes:
    data = encode("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def in_webp(block: bytes) -> bytes:
    return encode("WEBP", lossless=True, exif=b"Exif\0\0" + block)


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's, about the damage that is wanted

CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "JPEG": in_jpeg,
    "PNG": lambda block: in_png(chunk(b"eXIf", block)),
    "WEBP": in_webp,
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("tag", ODD_TAGS)
def test_odd_tags_cost_neither_the_picture_nor_its_orientation(container: str, tag: str) -> None:
    image = clean_image(CONTAINERS[container](ODD_TAGS[tag]))
    with Image.open(io.BytesIO(image.encoded)) as stored:
        found = np.asarray(stored.convert("RGB"), float)
        assert not stored.getexif()
    assert np.abs(found - np.rot90(np.asarray(PICTURE, float), -1)).mean() < 4


def text(key: str, value: str, compressed: bool = False) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text(key, value, zip=compressed)
    return encode("PNG", pnginfo=info)


def segment(marker: int, body: bytes) -> bytes:
    data = encode("JPEG")
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


BROKEN: dict[str, bytes] = {
    "GIF comment of 70 kB": encode("GIF", PICTURE.quantize(64), comment=b"c" * 70_000),
    "PNG text of 70 kB": text("comment", "c" * 70_000),
    "PNG compressed text of 3 MB": in_png(chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3_000_000)))),
    "PNG text without a separator": in_png(chunk(b"tEXt", b"no separator")),
    "PNG international text of 3 MB": in_png(chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(3_000_000)))),
    "PNG profile of 3 MB": in_png(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3_000_000)))),
    "PNG profile that is cut off": in_png(chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(999))[:-5])),
    "PNG text with a wrong checksum": in_png(chunk(b"tEXt", b"a\0b", crc=1)),
    "PNG EXIF with a wrong checksum": in_png(chunk(b"eXIf", b"II*\0", crc=1)),
    "PNG pHYs of one byte": in_png(chunk(b"pHYs", b"1")),
    "PNG gAMA of one byte": in_png(chunk(b"gAMA", b"1")),
    "JPEG with a short JFIF segment": segment(0xE0, b"JFIF\0"),
    "JPEG with a short Adobe segment": segment(0xEE, b"Adobe"),
    "JPEG with a short Photoshop segment": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\x00"),
    "JPEG with a profile in no order": segment(0xE2, b"ICC_PROFILE\0\x09\x01abc"),
    "JPEG with broken EXIF": segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "JPEG with a broken list of pictures": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "TIFF with odd tags": encode("TIFF", tiffinfo={0x11A: float("inf"), 0x10E: "d" * 70_000, 65000: b"x" * 70_000}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_metadata_is_dropped(kind: str) -> None:
    image = clean_image(BROKEN[kind])
    with Image.open(io.BytesIO(image.encoded)) as stored:
        found = np.asarray(stored.convert("RGB"), float)
    assert np.abs(found - np.asarray(PICTURE, float)).mean() < (12 if "GIF" in kind else 4)
    assert check_image(image.encoded) == (40, 60)


def test_what_changes_no_pixel_is_removed_and_nothing_else() -> None:
    good = encode("JPEG", exif=exif((ORIENTATION, 3, 1, struct.pack("<H", 6))), comment=b"c", icc_profile=b"i" * 99)
    assert len(without_metadata(good)) < len(good)
    for data in (good, encode("JPEG", PICTURE.convert("CMYK")), in_png(chunk(b"tEXt", b"a\0b")), encode("PNG")):
        images = [Image.open(io.BytesIO(part)) for part in (data, without_metadata(data))]
        assert np.array_equal(*(np.asarray(image) for image in images))
    assert without_metadata(encode("WEBP")) == encode("WEBP")
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\xff", b"\x89PNG\r\n\x1a\n", good[:50], encode("PNG")[:40]):
        assert without_metadata(data)[:2] == data[:2]


def iso(*brands: bytes) -> bytes:
    body = brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">L", len(body) + 8) + b"ftyp" + body + bytes(99)


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", "b")
    return stream.getvalue()


NAMED: dict[str, tuple[bytes, str]] = {
    "AVIF": (encode("AVIF"), "an AVIF image"),
    "AVIF by its second brand": (iso(b"mif1", b"miaf", b"avif"), "an AVIF image"),
    "HEIC": (iso(b"heic", b"mif1"), "a HEIC image"),
    "HEIF": (iso(b"mif1", b"heic"), "a HEIC image"),
    "MP4": (iso(b"isom", b"mp42"), "a video or another file of the MP4 family"),
    "HTML": (b"<!DOCTYPE html>\n<html><head><title>404</title>", "an HTML page"),
    "HTML behind spaces": (b"\xef\xbb\xbf \n<HTML lang='en'>", "an HTML page"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG image"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "a Git LFS pointer"),
    "GZIP": (gzip.compress(encode("JPEG")), "a GZIP file"),
    "ZIP": (zipped(), "a ZIP file"),
    "tar": (tar([("a", b"b")]), "a tar"),
    "PDF": (b"%PDF-1.7\n", "a PDF"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript file"),
    "JPEG 2000": (encode("JPEG2000"), "a JPEG 2000 image"),
    "JPEG XL": (b"\xff\x0a" + bytes(50), "a JPEG XL image"),
    "icon": (encode("ICO"), "a Windows icon"),
    "zeros": (bytes(5000), "only zeros"),
    "JSON": (b'{"error": "not found"}', "JSON"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_what_is_no_image_is_named(kind: str) -> None:
    data, name = NAMED[kind]
    for judge in (clean_image, check_image):
        with pytest.raises(ImageRejected) as caught:
            judge(data)
        assert f"not an image of a known format: {name}" in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "WebP", "GIF", "TIFF", "BMP"])
def test_a_damaged_image_is_named(kind: str) -> None:
    data = encode(kind, PICTURE if kind != "GIF" else PICTURE.quantize(64))
    with pytest.raises(ImageRejected, match=f"^(not an image of a known format: )?a {kind}"):
        clean_image(data[: len(data) // 3])
