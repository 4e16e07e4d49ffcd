"""The file of a checkpoint: arrays and a few numbers, checksummed. NumPy only.

It is an uncompressed .npz (arrays `array_00000` …, and `state`, a JSON object as bytes) followed by the SHA-256 of all
before it, 32 bytes. A file that was cut off or changed anywhere is found before anything of it is used.
"""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipelines.errors import first_line
from pipelines.system.files import atomic_writer

CHECKPOINT_VERSION = 1

_DIGEST_BYTES = 32


class DamagedCheckpoint(Exception):
    """The file is not what was written; the message says what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on: the values of its variables, in their order, and a JSON object."""

    arrays: Sequence[np.ndarray]
    state: dict[str, Any]

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all; raises `OSError`."""
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
            data = path.read_bytes()
        except OSError as error:
            raise DamagedCheckpoint(error.strerror or "cannot be read") from None
        content = memoryview(data)[:-_DIGEST_BYTES]
        if hashlib.sha256(content).digest() != data[-_DIGEST_BYTES:]:
            raise DamagedCheckpoint("its checksum is wrong")
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                state = dict(json.loads(file["state"].tobytes()))
                arrays = [file[name] for name in sorted(file.files) if name != "state"]
        # Whatever zipfile, NumPy and json raise for bytes that somebody else has put together, checksum included.
        except Exception as error:
            raise DamagedCheckpoint(f"it was not written by this program ({first_line(error)})") from None
        if (version := state.pop("version", None)) != CHECKPOINT_VERSION:
            raise DamagedCheckpoint(f"its version {version!r} is not the version {CHECKPOINT_VERSION} of this release")
        return cls(arrays, state)


class _HashingStream(io.RawIOBase):
    """Writes through to a file and hashes what passes. It cannot seek, so zipfile writes straight ahead."""

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


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of a process that was killed while it wrote."""
    for path in (*folder.glob(".*.tmp"), *folder.glob(".*.keras")):
        os.unlink(path)
