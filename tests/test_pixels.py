"""Samples of every format, depth and meaning become the right 8 bits, or are refused by name."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import PIL
import pytest
from PIL import Image

from pipelines.building.clean import ImageRejected, clean_image

SIDE = 32
GREY = 234 / 255  # what every grey picture of this file shows
SHORT, LONG = 3, 4
BITS, COMPRESSION, PHOTOMETRIC, STRIP, SAMPLES, ROWS, STRIP_BYTES = 258, 259, 262, 273, 277, 278, 279
EXTRA, SAMPLE_FORMAT, COLOR_MAP, ORIENTATION, PLANAR, SUBSAMPLING = 338, 339, 320, 274, 284, 530
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, LAB = 0, 1, 2, 3, 4, 5, 6, 8
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
# Pillow 12 finds these files cut off before we look at their chroma.
FEWER_CHROMA = "fewer chroma samples" if int(PIL.__version__.split(".")[0]) >= 13 else "cannot be decoded"


def tiff(pixels: bytes, photometric: int | None, bits: Sequence[int], order: str = "<", **more: Sequence[int]) -> bytes:
    """A TIFF of SIDE × SIDE pixels in one strip. `more`: further tags, as t338=(0,)."""
    tags: dict[int, tuple[int, Sequence[int]]] = {
        256: (SHORT, [SIDE]),
        257: (SHORT, [SIDE]),
        BITS: (SHORT, bits),
        COMPRESSION: (SHORT, [1]),
        STRIP: (LONG, [8]),
        SAMPLES: (SHORT, [len(bits)]),
        ROWS: (SHORT, [SIDE]),
        STRIP_BYTES: (LONG, [len(pixels)]),
    }
    if photometric is not None:
        tags[PHOTOMETRIC] = SHORT, [photometric]
    tags |= {int(name[1:]): (SHORT, values) for name, values in more.items()}
    body = pixels + bytes(len(pixels) % 2)
    entries = b""
    for tag, (kind, values) in sorted(tags.items()):
        data = struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        if len(data) > 4:
            data, body = struct.pack(f"{order}I", 8 + len(body)), body + data
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(body))
    return head + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def packed(value: int, bits: int, order: str = "<", count: int = SIDE * SIDE) -> bytes:
    """So many samples of one value, as TIFF packs them."""
    if bits in (8, 16, 32):
        return np.full(count, value, f"{order}u{bits // 8}").tobytes()
    text = format(value, f"0{bits}b") * count
    return int(text, 2).to_bytes(len(text) // 8, "big")


def shown(data: bytes) -> np.ndarray:
    """The mean colour of the picture that is stored."""
    with Image.open(io.BytesIO(clean_image(data).encoded)) as image:
        return np.asarray(image.convert("RGB"), float).mean((0, 1))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32])
@pytest.mark.parametrize("kind", [UNSIGNED, SIGNED, FLOAT])
def test_grey_tiffs(bits: int, photometric: int, kind: int, order: str) -> None:
    most = 2**bits - 1
    value = round(GREY * most)
    pixels = packed(most - value if photometric == WHITE_IS_ZERO else value, bits, order)
    data = tiff(pixels, photometric, [bits], order, t339=[kind])
    # The other combinations are not known to Pillow.
    deep = (bits == 16 and (order, photometric) != (">", WHITE_IS_ZERO)) or (
        (bits, order, photometric) == (12, "<", BLACK_IS_ZERO)
    )
    if kind == UNSIGNED and (bits in (1, 2, 4, 8) or deep):
        assert abs(shown(data) - 255 * value / most).max() < 3
    else:
        name = {UNSIGNED: "unsigned", SIGNED: "signed", FLOAT: "floating-point"}[kind]
        with pytest.raises(ImageRejected, match=f"a TIFF of {bits} bits, {name} samples, photometric interpretation"):
            clean_image(data)


@pytest.mark.parametrize("bits", [12, 16])
def test_grey_tiffs_keep_their_gradient(bits: int) -> None:
    levels = np.linspace(0, 2**bits - 1, SIDE).astype(np.uint16)
    text = "".join(format(value, f"0{bits}b") for value in np.tile(levels, SIDE).tolist())
    pixels = int(text, 2).to_bytes(len(text) // 8, "big")
    if bits == 16:
        pixels = np.frombuffer(pixels, ">u2").astype("<u2").tobytes()
    with Image.open(io.BytesIO(clean_image(tiff(pixels, BLACK_IS_ZERO, [bits])).encoded)) as image:
        row = np.asarray(image.convert("L"), float)[SIDE // 2]
    assert np.abs(row - levels / (2**bits - 1) * 255).max() < 5


COLOUR = (200, 120, 40)


def interleaved(samples: Sequence[int], bits: int, order: str = "<") -> bytes:
    return np.tile(np.array(samples, f"{order}u{bits // 8}"), SIDE * SIDE).tobytes()


def cmyk_of(colour: Sequence[int]) -> list[int]:
    """Ink from 0 (none) to 255, without black."""
    return [*(255 - value for value in colour), 0]


COLOURED: dict[str, tuple[bytes, str]] = {  # the picture shows COLOUR, or the reason for its rejection
    "RGB 8": (tiff(interleaved(COLOUR, 8), RGB, [8] * 3), ""),
    "RGB 16": (tiff(interleaved([257 * value for value in COLOUR], 16), RGB, [16] * 3), ""),
    "RGB 16 big-endian": (tiff(interleaved([257 * v for v in COLOUR], 16, ">"), RGB, [16] * 3, ">"), ""),
    "RGB 8 and alpha": (tiff(interleaved([*COLOUR, 128], 8), RGB, [8] * 4, t338=[2]), ""),
    "RGB 8 and another sample": (tiff(interleaved([*COLOUR, 128], 8), RGB, [8] * 4, t338=[0]), ""),
    "RGB 8 premultiplied": (
        tiff(interleaved([*(value // 2 for value in COLOUR), 128], 8), RGB, [8] * 4, t338=[1]),
        "",
    ),
    "RGB signed": (tiff(interleaved(COLOUR, 8), RGB, [8] * 3, t339=[SIGNED] * 3), "8\\+8\\+8 bits, signed samples"),
    "RGB float": (
        tiff(np.tile(np.float32(COLOUR) / 255, SIDE * SIDE).tobytes(), RGB, [32] * 3, t339=[FLOAT] * 3),
        "floating-point samples",
    ),
    "CMYK 8": (tiff(interleaved(cmyk_of(COLOUR), 8), CMYK, [8] * 4), ""),
    "CMYK 16": (tiff(interleaved([257 * value for value in cmyk_of(COLOUR)], 16), CMYK, [16] * 4), ""),
    "inks that are not CMYK": (tiff(interleaved(cmyk_of(COLOUR), 8), CMYK, [8] * 4, t332=[2]), "special inks"),
    "CMYK where 255 is no ink": (
        tiff(interleaved([255 - value for value in cmyk_of(COLOUR)], 8), CMYK, [8] * 4, t336=[255, 0]),
        "special inks",
    ),
    "YCbCr, chroma at half resolution": (tiff(interleaved([1, 2, 3], 8), YCBCR, [8] * 3), FEWER_CHROMA),
    "CIELab": (tiff(interleaved([1, 2, 3], 8), LAB, [8] * 3), "CieLAB"),
    "no photometric interpretation": (
        tiff(packed(234, 8), None, [8]),
        "a TIFF of 8 bits, unsigned samples, photometric interpretation missing",
    ),
    "transparency mask": (tiff(packed(1, 1), MASK, [1]), "Transparency Mask"),
}


@pytest.mark.parametrize("kind", COLOURED)
def test_coloured_tiffs(kind: str) -> None:
    data, reason = COLOURED[kind]
    if reason:
        with pytest.raises(ImageRejected, match=reason):
            clean_image(data)
    else:
        assert np.abs(shown(data) - COLOUR).max() < 4


@pytest.mark.parametrize("scale", [1, 257])
def test_palettes_of_tiffs(scale: int) -> None:
    """The map has 16 bits; some writers put 8 bits there."""
    table = np.zeros((3, 256), int)
    table[:, 7] = np.array(COLOUR) * scale
    data = tiff(packed(7, 8), PALETTE, [8], t320=table.ravel().tolist())
    assert np.abs(shown(data) - COLOUR).max() < 4


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_tiffs_are_turned(orientation: int) -> None:
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[: SIDE // 2] = 255
    image = clean_image(tiff(pixels.tobytes(), BLACK_IS_ZERO, [8], t274=[orientation]))
    with Image.open(io.BytesIO(image.encoded)) as stored:
        found = np.asarray(stored.convert("L"), float)
    turned = {1: pixels, 3: np.rot90(pixels, 2), 6: np.rot90(pixels, -1), 8: np.rot90(pixels)}[orientation]
    assert np.abs(found - turned).mean() < 3


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(samples: Sequence[int], bits: int, kind: int, *more: bytes) -> bytes:
    """A PNG in which every pixel has these samples; `kind` is the colour type (PNG specification, 11.2.2)."""
    text = "".join(format(value, f"0{bits}b") for value in samples) * SIDE
    row = b"\0" + int(text, 2).to_bytes(-(-len(text) // 8), "big")
    head = struct.pack(">IIBBBBB", SIDE, SIDE, bits, kind, 0, 0, 0)
    chunks = [chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(row * SIDE)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_pngs(bits: int, transparent: bool) -> None:
    value = round(GREY * (2**bits - 1))
    more = [chunk(b"tRNS", struct.pack(">H", value))] if transparent else []
    assert abs(shown(png([value], bits, 0, *more)) - 255 * value / (2**bits - 1)).max() < 3


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_of_pngs(bits: int, transparent: bool) -> None:
    more = [chunk(b"tRNS", bytes([255, 0]))] if transparent else []
    data = png([1], bits, 3, chunk(b"PLTE", bytes([9, 9, 9, *COLOUR])), *more)
    assert np.abs(shown(data) - COLOUR).max() < 4


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", [2, 4, 6])
def test_coloured_and_transparent_pngs(kind: int, bits: int) -> None:
    colour = COLOUR if kind != 4 else (234,) * 3
    samples = {2: [*colour], 4: [234, 10], 6: [*colour, 10]}[kind]
    data = png([value * (257 if bits == 16 else 1) for value in samples], bits, kind)
    assert np.abs(shown(data) - colour).max() < 4


@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_of_gifs(transparent: bool) -> None:
    image = Image.new("P", (SIDE, SIDE), 1)
    image.putpalette([9, 9, 9, *COLOUR])
    stream = io.BytesIO()
    image.save(stream, "GIF", **({"transparency": 1} if transparent else {}))
    assert np.abs(shown(stream.getvalue()) - COLOUR).max() < 4


@pytest.mark.parametrize("most", [1, 15, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", ["P5", "P6"])
def test_ppms_of_every_range(kind: str, most: int) -> None:
    value = round(GREY * most)
    samples = np.full(SIDE * SIDE * (3 if kind == "P6" else 1), value, ">u2" if most > 255 else "u1")
    data = f"{kind} {SIDE} {SIDE} {most}\n".encode() + samples.tobytes()
    assert abs(shown(data) - 255 * value / most).max() < 3


def test_floating_point_ppms_are_refused() -> None:
    data = f"Pf\n{SIDE} {SIDE}\n-1.0\n".encode() + np.full(SIDE * SIDE, GREY, "<f4").tobytes()
    with pytest.raises(ImageRejected, match="PPM with floating-point samples"):
        clean_image(data)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_jpegs_of_both_polarities(adobe: bool, progressive: bool) -> None:
    """With Adobe's marker 255 is no ink, without it 0 is: as TensorFlow's and ImageMagick's decoders have it."""
    ink = Image.new("CMYK", (SIDE, SIDE), tuple(cmyk_of(COLOUR)))
    stream = io.BytesIO()
    ink.save(stream, "JPEG", quality=95, progressive=progressive)  # with the marker, inverted
    data = stream.getvalue()
    if not adobe:
        plain = Image.new("CMYK", (SIDE, SIDE), tuple(255 - value for value in cmyk_of(COLOUR)))
        stream = io.BytesIO()
        plain.save(stream, "JPEG", quality=95, progressive=progressive)
        data = stream.getvalue()
        start = data.index(b"\xff\xee")
        data = data[:start] + data[start + 16 :]
        assert b"Adobe" not in data
    assert np.abs(shown(data) - COLOUR).max() < 4


@pytest.mark.parametrize(("mode", "colour"), [("RGB", COLOUR), ("RGBA", (*COLOUR, 128)), ("L", (234,)), ("1", (1,))])
@pytest.mark.parametrize("kind", ["BMP", "WEBP", "TIFF", "PNG"])
def test_what_pillow_writes(kind: str, mode: str, colour: tuple[int, ...]) -> None:
    image = Image.new(mode, (SIDE, SIDE), colour if len(colour) > 1 else colour[0])
    stream = io.BytesIO()
    image.save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
    expected = {"L": (234,) * 3, "1": (255,) * 3}.get(mode, COLOUR)
    assert np.abs(shown(stream.getvalue()) - expected).max() < 4
