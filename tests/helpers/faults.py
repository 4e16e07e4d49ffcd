"""Damages copies of files in the ways that disks and networks do."""

import ctypes
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines import ShardSet
from pipelines.shards.records import ENCODED, decode_example


def copy_dataset(dataset: Path, target: Path) -> Path:
    """A copy of a data set for a test to damage. It has no links: our writers follow a link to the file behind it."""
    return shutil.copytree(dataset, target)


def image_range(shards: ShardSet, record: int) -> tuple[Path, int, int]:
    """The shard of a record, and the first byte and the length of its JPEG."""
    path, start = shards.paths[shards.shard[record]], int(shards.offsets[record]) + 12
    with open(path, "rb") as stream:
        stream.seek(start)
        data = stream.read(int(shards.lengths[record]) - 16)
    encoded = bytes(decode_example(memoryview(data))[ENCODED])  # type: ignore[arg-type]
    return path, start + data.index(encoded), len(encoded)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Replaces some bytes of a file."""
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Flips one bit of a file."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        (byte,) = stream.read(1)
    overwrite(path, offset, bytes([byte ^ 1 << bit]))


def zero_image_head(shards: ShardSet, record: int) -> None:
    """Damages the start of a JPEG, so that no decoder accepts it."""
    path, start, _ = image_range(shards, record)
    overwrite(path, start, bytes(20))


def zero_image_tail(shards: ShardSet, record: int) -> None:
    """Damages the end of a JPEG. A decoder that reads only a region may accept it."""
    path, start, length = image_range(shards, record)
    overwrite(path, start + length // 4, bytes(length - length // 4))


def break_example(shards: ShardSet, record: int) -> None:
    """Damages a record, so that it is not a `tf.train.Example`."""
    overwrite(shards.paths[shards.shard[record]], int(shards.offsets[record]) + 12, b"\xff" * 10)


RECORD_DAMAGES: dict[str, Callable[[ShardSet, int], None]] = {
    "image head": zero_image_head,
    "image tail": zero_image_tail,
    "example": break_example,
}


def corrupt(shards: ShardSet, numbers: Iterable[int], kind: str = "image head") -> None:
    """Damages some records in one of the ways of RECORD_DAMAGES."""
    for number in numbers:
        RECORD_DAMAGES[kind](shards, int(number))


def truncate(path: Path, share: float = 0.5) -> None:
    """Shortens a file to a share of its length."""
    os.truncate(path, int(path.stat().st_size * share))


def replace_by_fifo(path: Path) -> None:
    """Makes opening a file block, as on a server that does not answer. See `release_fifo`."""
    path.unlink()
    os.mkfifo(path)


def release_fifo(path: Path) -> None:
    """Ends the waiting of all that opened a FIFO: they read an empty file."""
    descriptor = os.open(path, os.O_RDWR)
    path.unlink()
    os.close(descriptor)


def failing_reads(monkeypatch: pytest.MonkeyPatch, number: int, times: int | None = None) -> list[int]:
    """Makes `os.pread` fail with this errno, `times` times or always. The list gets one entry for each failure."""
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
    """Within this context no file of this process can grow beyond `num_bytes`: writing more fails with EFBIG."""
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
    """Within this context nothing can be written below a folder. A mount does it: permissions do not stop root."""
    for arguments in (["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
        if subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here, and permissions do not stop root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


_CAPABILITIES_3, _DAC_OVERRIDE = 0x20080522, 1 << 1  # linux/capability.h


@contextmanager
def no_permission(folder: Path) -> Iterator[None]:
    """Within this context nothing can be created in a folder, not even by root: the thread lacks CAP_DAC_OVERRIDE."""
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
