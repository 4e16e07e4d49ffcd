"""One record: a `tf.train.Example` in TFRecord framing. The writer and all readers share this schema.

It does not use TensorFlow, so that builder processes start quickly and an index needs only record headers.
Wire formats: protobuf's `example.proto` and `feature.proto`, and TFRecord (length u64, masked CRC-32C of the length,
data, masked CRC-32C of the data; all little-endian).
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import google_crc32c
import numpy as np

# The features of keras_imagenet, with the names of TensorFlow's ImageNet scripts.
ENCODED = "image/encoded"
HEIGHT = "image/height"
WIDTH = "image/width"
COLORSPACE = "image/colorspace"
CHANNELS = "image/channels"
FORMAT = "image/format"
FILENAME = "image/filename"
LABEL = "image/class/label"
SYNSET = "image/class/synset"
TEXT = "image/class/text"

HEADER_BYTES = 12
FOOTER_BYTES = 4

_ONE_BYTE = tuple(bytes((value,)) for value in range(0x80))

FeatureValue = bytes | int | Sequence[float] | np.ndarray


def masked_crc(data: bytes | memoryview) -> int:
    """TFRecord's masked CRC-32C: rotated right by 15 bits, plus a constant, so that a CRC of a CRC stays useful."""
    crc = google_crc32c.value(bytes(data))
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """`data` as one TFRecord: 12 bytes of header, the data, 4 bytes of footer."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc(length)), data, struct.pack("<I", masked_crc(data))))


def encode_example(features: Mapping[str, FeatureValue]) -> bytes:
    """Serializes a `tf.train.Example`. Keys are sorted, so that equal features give equal bytes.

    Args:
        features: `bytes` become a BytesList and `int` an Int64List of one value, floats a FloatList.
    """
    entries = chain.from_iterable(
        _field(1, *_field(1, name.encode("utf-8")), *_field(2, *_feature(value)))
        for name, value in sorted(features.items())
    )
    return b"".join(_field(1, *entries))


def decode_example(data: memoryview) -> dict[str, memoryview | int | None]:
    """Reads a `tf.train.Example` without copying payloads.

    Returns:
        The first value of every bytes and int64 feature; None for floats and empty lists.

    Raises:
        ValueError: the bytes are not a `tf.train.Example`.
    """
    features: dict[str, memoryview | int | None] = {}
    for number, body in _fields(data):
        if number != 1:
            continue
        for entry_number, entry in _fields(_message(body)):
            if entry_number != 1:
                continue
            pair = dict(_fields(_message(entry)))
            name = bytes(_message(pair.get(1, memoryview(b"")))).decode("utf-8")
            features[name] = _first_value(_message(pair.get(2, memoryview(b""))))
    return features


def stored_size(features: Mapping[str, object]) -> tuple[int, int] | None:
    """Height and width in a record's features; None if they are missing or impossible."""
    height, width = features.get(HEIGHT), features.get(WIDTH)
    if isinstance(height, int) and isinstance(width, int) and 1 <= min(height, width) <= max(height, width) < 2**31:
        return height, width
    return None


def _varint(value: int) -> bytes:
    if 0 <= value <= 0x7F:
        return _ONE_BYTE[value]
    out = bytearray()
    value &= 0xFFFFFFFFFFFFFFFF
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, *body: bytes) -> tuple[bytes, ...]:
    """A length-delimited protobuf field, in parts, so that an image is copied once and not at each level."""
    return (_ONE_BYTE[number << 3 | 2] + _varint(sum(map(len, body))), *body)


def _feature(value: FeatureValue) -> tuple[bytes, ...]:
    if isinstance(value, bytes):
        return _field(1, *_field(1, value))
    if isinstance(value, int):
        return _field(3, *_field(1, _varint(value)))
    return _field(2, *_field(1, np.asarray(value, "<f4").tobytes()))


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
    raise ValueError("a number in the record has no end")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, body) of every field of a protobuf message."""
    position, end = 0, len(data)
    while position < end:
        tag = data[position]
        position += 1
        if tag > 0x7F:
            tag, position = _read_varint(data, position - 1)
        kind = tag & 7
        if kind == 2:
            length = data[position] if position < end else 0x80
            position += 1
            if length > 0x7F:
                length, position = _read_varint(data, position - 1)
        elif kind == 0:
            value, position = _read_varint(data, position)
            yield tag >> 3, value
            continue
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"protobuf wire type {kind} is unknown")
        start, position = position, position + length
        if position > end:
            raise ValueError("a field of the record is longer than the record")
        yield tag >> 3, data[start:position]


def _message(body: memoryview | int) -> memoryview:
    if isinstance(body, int):
        raise ValueError("the record has a number in place of a message")
    return body


def _first_value(feature: memoryview) -> memoryview | int | None:
    for kind, body in _fields(feature):
        for number, value in _fields(_message(body)):
            if number != 1 or kind == 2:
                continue
            if kind == 3:
                # packed (the usual form) or, from old writers, one varint a field
                value = value if isinstance(value, int) else _read_varint(value, 0)[0]
                return value - (1 << 64) if value >> 63 else value
            return _message(value)
    return None
