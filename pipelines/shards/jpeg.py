"""Reads the frame header of a JPEG (ITU-T T.81, B.2.2) without decoding it."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

BASELINE, PROGRESSIVE = 0, 2  # the n of marker SOFn

_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN = 0xDA


@dataclass(frozen=True)
class JpegHeader:
    """A frame header.

    Attributes:
        process: the n of SOFn.
        precision: bits of a sample.
        height: pixels.
        width: pixels.
        components: 1 for grey, 3 for colour, 4 for CMYK.
    """

    process: int
    precision: int
    height: int
    width: int
    components: int


def segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, position of its length) of each segment from the start of a JPEG on.

    Raises:
        ValueError: `data` is not a JPEG, or a marker is missing.
    """
    if data[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG")
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise ValueError("damaged JPEG header")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _STANDALONE:
            position += 2
        else:
            yield marker, position + 2
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]


def read_header(data: bytes) -> JpegHeader:
    """The frame header of `data`. Raises `ValueError` if `data` is not a JPEG or ends before it."""
    for marker, position in segments(data):
        if marker in _FRAMES and position + 8 <= len(data):
            precision, height, width, components = struct.unpack_from(">BHHB", data, position + 2)
            return JpegHeader(marker - 0xC0, precision, height, width, components)
    raise ValueError("the JPEG has no frame header")


def head_bytes(data: bytes) -> bytes:
    """The bytes of a JPEG before its first scan, with the header of the scan. Raises `ValueError` as `segments`."""
    for marker, position in segments(data):
        if marker == _SCAN:
            return bytes(data[: position + struct.unpack_from(">H", data, position)[0]])
    raise ValueError("the JPEG has no scan")
