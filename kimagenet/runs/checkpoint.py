"""The file of a checkpoint: arrays and a few numbers, with a checksum. Needs NumPy only.

It is an uncompressed .npz (arrays `array_00000` …, and `state`, a JSON object as bytes), followed by the SHA-256 of
these bytes (32 bytes). A file that is cut off or changed anywhere is refused before any of it is used.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipelines.errors import first_line
from pipelines.system.files import atomic_writer
from pipelines.system.reading import read_file

CHECKPOINT_VERSION = 1

_DIGEST_BYTES = 32


class DamagedCheckpoint(Exception):
    """The file is not as it was written; the message says what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run.

    Attributes:
        arrays: the values of the run's variables, in their order.
        state: a JSON object.
    """

    arrays: Sequence[np.ndarray]
    state: dict[str, Any]

    def write(self, path: Path) -> None:
        """Writes the file completely or not at all; raises `OSError`."""
        state = json.dumps({"version": CHECKPOINT_VERSION, **self.state}).encode()
        named = {f"array_{number:05d}": array for number, array in enumerate(self.arrays)}
        with atomic_writer(path) as stream:
            hashing = _HashingStream(stream)
            np.savez(hashing, allow_pickle=False, state=np.frombuffer(state, np.uint8), **named)
            stream.write(hashing.sha256.digest())

    @classmethod
    def read(cls, path: Path) -> "Checkpoint":
        """Reads and checks the file; raises `DamagedCheckpoint`."""
        try:
            data = read_file(path)
        except OSError as error:
            raise DamagedCheckpoint(error.strerror or "cannot be read") from None
        content = memoryview(data)[:-_DIGEST_BYTES]
        if hashlib.sha256(content).digest() != data[-_DIGEST_BYTES:]:
            raise DamagedCheckpoint("its checksum is wrong")
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                state = dict(json.loads(file["state"].tobytes()))
                arrays = [file[name] for name in sorted(file.files) if name != "state"]
        # zipfile, NumPy and json raise many types for bytes that another program wrote with a right checksum.
        except Exception as error:
            raise DamagedCheckpoint(f"it was not written by this program ({first_line(error)})") from None
        if (version := state.pop("version", None)) != CHECKPOINT_VERSION:
            raise DamagedCheckpoint(f"its version is {version!r}, this release reads version {CHECKPOINT_VERSION}")
        return cls(arrays, state)


class _HashingStream(io.RawIOBase):
    """Writes to a file and hashes the bytes. It cannot seek, so zipfile writes them in order."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._stream.write(data)

    def flush(self) -> None:
        if not self._stream.closed:
            self._stream.flush()
