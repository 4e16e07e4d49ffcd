"""What goes wrong with files, to be done to copies: for every suite that tests what happens then."""

import ctypes
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines import ShardSet
from pipelines.shards.records import ENCODED, decode_example


def copy_dataset(dataset: Path, target: Path) -> Path:
    """A copy of a data set that may be damaged; its `.npy` and `.json` files are links."""
    target.mkdir(parents=True)
    for path in dataset.iterdir():
        if path.suffix in (".npy", ".json", ".idx"):
            (target / path.name).symlink_to(path)
        else:
            (target / path.name).write_bytes(path.read_bytes())
    return target


def image_range(shards: ShardSet, record: int) -> tuple[Path, int, int]:
    """The shard of a record, and the first byte and the length of the JPEG in it."""
    path, start = shards.paths[shards.shard[record]], int(shards.offsets[record]) + 12
    with open(path, "rb") as stream:
        stream.seek(start)
        data = stream.read(int(shards.lengths[record]) - 16)
    encoded = bytes(decode_example(memoryview(data))[ENCODED])  # type: ignore[arg-type]
    return path, start + data.index(encoded), len(encoded)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Bit rot: other bytes in the place of some, the file's length stays."""
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """The other value of one bit."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        (byte,) = stream.read(1)
    overwrite(path, offset, bytes([byte ^ 1 << bit]))


def zero_image_head(shards: ShardSet, record: int) -> None:
    """No decoder takes it for an image any more."""
    path, start, _ = image_range(shards, record)
    overwrite(path, start, bytes(20))


def zero_image_tail(shards: ShardSet, record: int) -> None:
    """A JPEG that breaks off: a decoder that reads only a region may take it."""
    path, start, length = image_range(shards, record)
    overwrite(path, start + length // 4, bytes(length - length // 4))


def break_example(shards: ShardSet, record: int) -> None:
    """Its bytes are no `tf.train.Example` any more."""
    overwrite(shards.paths[shards.shard[record]], int(shards.offsets[record]) + 12, b"\xff" * 10)


RECORD_DAMAGES: dict[str, Callable[[ShardSet, int], None]] = {
    "image head": zero_image_head,
    "image tail": zero_image_tail,
    "example": break_example,
}


def corrupt(shards: ShardSet, numbers: Iterable[int], kind: str = "image head") -> None:
    """Damages some records, each in the same way."""
    for number in numbers:
        RECORD_DAMAGES[kind](shards, int(number))


def truncate(path: Path, share: float = 0.5) -> None:
    """A file that has shrunk."""
    os.truncate(path, int(path.stat().st_size * share))


def replace_by_fifo(path: Path) -> None:
    """A file on a server that is gone: whoever opens it waits. See `release_fifo`."""
    path.unlink()
    os.mkfifo(path)


def release_fifo(path: Path) -> None:
    """Lets those go who wait for a FIFO: they read an empty file. Nobody waits any more for it afterwards."""
    descriptor = os.open(path, os.O_RDWR)
    path.unlink()
    os.close(descriptor)


def failing_reads(monkeypatch: pytest.MonkeyPatch, number: int, times: int | None = None) -> list[int]:
    """`os.pread` fails with this errno, so many times or for good; the list grows by one for each failure."""
    real, failures = os.pread, list[int]()

    def pread(descriptor: int, length: int, offset: int) -> bytes:
        if times is None or len(failures) < times:
            failures.append(offset)
            raise OSError(number, os.strerror(number))
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    return failures


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """Within it, no file of this process can grow beyond `num_bytes`: a write stops in the middle with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Within it, nothing can be written below a folder that exists: root heeds no permissions, but mounts."""
    for arguments in (["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
        if subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here, and root heeds no permissions")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


_CAPABILITIES_3, _DAC_OVERRIDE = 0x20080522, 1 << 1  # linux/capability.h


@contextmanager
def no_permission(folder: Path) -> Iterator[None]:
    """Within it, nothing can be made in a folder, not even by root: this thread lacks CAP_DAC_OVERRIDE for a while."""
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then those from 32 on
    assert libc.capget(header, sets) == 0
    effective, mode = sets[0], folder.stat().st_mode
    folder.chmod(0o555)
    sets[0] &= ~_DAC_OVERRIDE
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0
        folder.chmod(mode)
