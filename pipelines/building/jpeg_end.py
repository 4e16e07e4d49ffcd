"""JPEGs that end too early: whether a decoder finds the end marker, and whether all pixels are there without it.

Decoders differ: Pillow accepts some of the files that lack only the end marker, depending on the last bits, and
TensorFlow refuses all files in which it does not find one. (ITU-T T.81, B.1.1 and B.2.)
"""

import io
import re

import numpy as np
from PIL import Image

from pipelines.system.pillow import without_limit_and_warnings

END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # not a stuffed byte, a fill byte or a restart
_SCAN, _END = 0xDA, 0xD9
_STANDALONE = {0x01, 0xD8}
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Bits behind the end: a decoder that needs them makes other pixels of each tail. One block may take 200 bytes of them.
_TAIL_BYTES = 4096
_RANDOM = [np.random.default_rng(seed).integers(0, 255, _TAIL_BYTES, np.uint8).tobytes() for seed in range(2)]
_TAILS = (b"", bytes(_TAIL_BYTES), *_RANDOM)
_RESTART_TAILS = tuple(bytes([0xFF, 0xD0 + number]) + _RANDOM[0] for number in range(8))
_INTERVAL = b"\xff\xdd"


def has_end(data: bytes) -> bool:
    """Whether a decoder that reads a JPEG marker by marker reaches the end marker."""
    return any(marker == _END for marker, _ in _markers(data))


def with_end(data: bytes) -> bytes:
    """The JPEG with the end marker that it lacks."""
    return data.rstrip(b"\xff") + END  # the first byte of the marker may be there


def all_pixels(data: bytes) -> bool:
    """Whether only the end marker is missing: all scans are there, and no pixel depends on bits behind the end."""
    data = data.rstrip(b"\xff")
    if not _all_scans(data) or not has_end(data + END):
        return False
    try:
        tails = _TAILS + _RESTART_TAILS * (_INTERVAL in data)
        pixels = [_pixels(data + tail + END) for tail in tails]
    except Exception:  # Pillow raises many types: some bits behind the end make the file wrong
        return False
    return all(np.array_equal(pixels[0], other) for other in pixels[1:])


def _pixels(data: bytes) -> np.ndarray:
    with without_limit_and_warnings(), Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return np.asarray(image)


def _markers(data: bytes) -> list[tuple[int, int]]:
    """(marker, position of its segment's length) of each marker; the entropy-coded data between them is skipped."""
    found: list[tuple[int, int]] = []
    position = 2
    while match := _MARKER.search(data, position):
        position = match.end()
        marker = data[position - 1]
        found.append((marker, position))
        if marker == _END:
            break
        if marker not in _STANDALONE:
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return found


def _all_scans(data: bytes) -> bool:
    """Whether the scans give every coefficient of every component with its last bit."""
    components: set[int] = set()
    exact: set[tuple[int, int]] = set()
    for marker, start in _markers(data):
        body = data[start + 2 : start + int.from_bytes(data[start : start + 2], "big")]
        try:
            if marker in _FRAMES:
                components = {body[6 + 3 * number] for number in range(body[5])}
            elif marker == _SCAN:
                first, last, bits = body[1 + 2 * body[0] : 4 + 2 * body[0]]
                if bits & 15 == 0:
                    named = (body[1 + 2 * number] for number in range(body[0]))
                    exact |= {(component, k) for component in named for k in range(first, last + 1)}
        except (IndexError, ValueError):
            return False
    return bool(components) and exact >= {(component, k) for component in components for k in range(64)}
