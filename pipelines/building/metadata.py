"""Removes metadata that cannot be read, so that it does not decide about pixels that can."""

import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_JFIF_BYTES, _ADOBE_BYTES = 14, 12  # what decoders need of these two segments, which say how colours are stored
_SCAN = 0xDA


def without_metadata(data: bytes) -> bytes:
    """The same image without what does not change its pixels.

    A PNG keeps its critical chunks, and EXIF if its checksum is right. A JPEG loses its comments and application
    segments, except whole JFIF and Adobe segments. Other formats, and what cannot be taken apart, stay as they are.
    """
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    return data


def _png(data: bytes) -> bytes:
    kept = [data[: len(_PNG)]]
    position = len(_PNG)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        name, body = data[position + 4 : position + 8], data[position + 4 : end - 4]
        good = zlib.crc32(body) == int.from_bytes(data[end - 4 : end], "big")
        if not name[0] & 0x20 or (name == b"eXIf" and good):  # a capital letter: critical
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, data[position:]])


def _jpeg(data: bytes) -> bytes:
    kept = [data[:2]]
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker == _SCAN or 0xD0 <= marker <= 0xD9:
            break
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : end]
        application = 0xE0 <= marker <= 0xEF or marker == 0xFE
        needed = (marker == 0xE0 and body.startswith(b"JFIF") and len(body) >= _JFIF_BYTES) or (
            marker == 0xEE and body.startswith(b"Adobe") and len(body) >= _ADOBE_BYTES
        )
        if not application or needed:
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, data[position:]])
