"""Fuzzing of everything that reads untrusted bytes, by random mutation of good ones.

    python -m tests.helpers.fuzz --inputs 1000000 --findings DIR [--target NAME …] [--seed 0]

A finding is an input that raises what its reader does not promise, takes longer than a second, or needs more than a
gigabyte; it is written to DIR. The findings so far are tests in test_fuzz.py, which has a short run of this, too.
"""

import argparse
import hashlib
import io
import json
import re
import resource
import struct
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kimagenet.recipe import Recipe
from kimagenet.runs.checkpoint import Checkpoint, DamagedCheckpoint
from kimagenet.runs.directory import RunDirectory
from pipelines import UserError
from pipelines.building.sources.tars import list_tar
from pipelines.shards.dataset import ClassInfo, DatasetInfo, ShardInfo, SplitInfo
from pipelines.shards.index import Index, read_index, scan
from pipelines.shards.jpeg import read_header
from pipelines.shards.records import decode_example, frame
from tests.helpers.data import example, jpeg, photo

SECONDS, BYTES = 1.0, 1 << 30
NUMBERS = [0, 1, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
TOKENS = [
    b"null",
    b"-1",
    b"1e999",
    b"NaN",
    b"[]",
    b"{}",
    b'"../../etc/passwd"',
    b"1" * 400,
    b"true",
    b"[" * 2000,
    b"\xff",
]


@dataclass(frozen=True)
class Target:
    """A reader: `read` takes the bytes and a folder for scratch files, and may raise what it promises."""

    read: Callable[[bytes, Path], object]
    promised: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]


def _read_index(data: bytes, folder: Path) -> None:
    (folder / "shard.idx").write_bytes(data)
    shard = folder / "shard"
    if not shard.exists():
        shard.write_bytes(bytes(300))
    read_index(shard)


def _read_shard(data: bytes, folder: Path) -> None:
    (folder / "scanned").write_bytes(data)
    scan(folder / "scanned")


def _read_dataset(data: bytes, folder: Path) -> None:
    (folder / "dataset.json").write_bytes(data)
    DatasetInfo.load(folder)


def _read_recipe(data: bytes, folder: Path) -> None:
    (folder / "recipe.json").write_bytes(data)
    Recipe.load(folder / "recipe.json")


def _read_run(data: bytes, folder: Path) -> None:
    (folder / "run.json").write_bytes(data)
    RunDirectory(folder).read_info()


def _read_tar(data: bytes, folder: Path) -> None:
    (folder / "a.tar").write_bytes(data)
    for _ in list_tar(folder / "a.tar", "a.tar"):
        pass


def _read_checkpoint(data: bytes, folder: Path) -> None:
    """With the right checksum: what somebody has made, not what a disk has spoiled."""
    (folder / "a.ckpt").write_bytes(data + hashlib.sha256(data).digest())
    Checkpoint.read(folder / "a.ckpt")


def _jpegs() -> tuple[bytes, ...]:
    rng = np.random.default_rng(0)
    return tuple(jpeg(photo(rng, kind, 24, 30), kind) for kind in range(4))


def _dataset() -> bytes:
    shards = [ShardInfo(file=f"train-0000{i}-of-00002", records=3, bytes=300, crc32c="0badf00d") for i in range(2)]
    splits = {"train": SplitInfo(shards=shards, sizes="train-sizes.npy", quarantine=[1, 4])}
    classes = [ClassInfo(name="a", wnid="n01440764"), ClassInfo(name="Straße")]
    return DatasetInfo(label_base=1, classes=classes, splits=splits).model_dump_json(indent=1).encode()


def _tar(kind: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        for name in ("a/b.jpg", ("ü" * 120 if kind != tarfile.USTAR_FORMAT else "ü") + ".jpg", "c.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 700
            archive.addfile(member, io.BytesIO(bytes(700)))
    return stream.getvalue()


def _checkpoint() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.ckpt"
        Checkpoint([np.arange(6.0, dtype=np.float32), np.array(3)], {"epoch": 1}).write(path)
        return path.read_bytes()[:-32]


def targets() -> dict[str, Target]:
    """All readers of bytes that somebody else may have written."""
    jpegs = _jpegs()
    examples = tuple(example(image, label) for label, image in enumerate(jpegs))
    index = Index(np.array([0, 100, 250]), np.array([100, 150, 50])).to_bytes()
    tars = tuple(_tar(kind) for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    run = json.dumps({"version": 1, "dataset_dir": "/data", "identity": {"a": "b"}}).encode()
    return {
        "index": Target(_read_index, (UserError,), (index,)),
        "shard": Target(_read_shard, (UserError,), (b"".join(map(frame, examples[:2])), frame(b"") + frame(b"x"))),
        "dataset.json": Target(_read_dataset, (UserError,), (_dataset(),)),
        "recipe.json": Target(_read_recipe, (UserError,), (Recipe().to_json().encode(),)),
        "run.json": Target(_read_run, (UserError,), (run,)),
        "example": Target(lambda data, _: decode_example(memoryview(data)), (ValueError,), examples),
        "jpeg": Target(lambda data, _: read_header(data), (ValueError,), jpegs),
        "tar": Target(_read_tar, (UserError,), tars),
        "checkpoint": Target(_read_checkpoint, (DamagedCheckpoint,), (_checkpoint(),)),
    }


def mutate(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """One to five changes: bits, bytes, numbers, words, pieces that go, come twice or come from `other`."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        start = int(rng.integers(0, len(changed) + 1))
        stop = min(len(changed), start + int(rng.integers(0, 1 + min(64, len(changed)))))
        kind = int(rng.integers(0, 8))
        if kind == 0 and start < len(changed):
            changed[start] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            changed[start:stop] = rng.bytes(stop - start)
        elif kind == 2:
            number = NUMBERS[int(rng.integers(0, len(NUMBERS)))]
            form = (">Q", "<Q", ">I", "<I", ">H", "<H")[int(rng.integers(0, 6))]
            packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
            changed[start : start + len(packed)] = packed
        elif kind == 3:
            changed[start:stop] = TOKENS[int(rng.integers(0, len(TOKENS)))]
        elif kind == 4:
            del changed[start:stop]
        elif kind == 5:
            changed[stop:stop] = changed[start:stop]
        elif kind == 6:
            begin = int(rng.integers(0, len(other) + 1))
            changed[start:start] = other[begin : begin + stop - start]
        elif kind == 7 and rng.random() < 0.2:
            del changed[start:]
    return bytes(changed)


def problem(target: Target, data: bytes, folder: Path) -> str:
    """What is wrong with what the reader makes of the bytes; nothing, usually."""
    for _ in range(2):  # slow is who is slow again: Python's garbage collection may fall into a read
        began = time.thread_time()  # another's load is no hang
        try:
            target.read(data, folder)
        except target.promised as error:
            if issubclass(UserError, target.promised) and "\n" in str(error):
                return "a message of several lines"
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        seconds = time.thread_time() - began
        if seconds <= SECONDS:
            return ""
    return f"{seconds:.1f} s"


def fuzz(target: Target, inputs: int, seed: int, folder: Path) -> dict[str, bytes]:
    """The findings of so many mutated inputs: the first input for each kind of problem."""
    rng = np.random.default_rng(seed)
    corpus = list(target.seeds)
    found: dict[str, bytes] = {}
    for _ in range(inputs):
        a, b = (corpus[int(i)] for i in rng.integers(0, len(corpus), 2))
        data = mutate(rng, a, b)
        if reason := problem(target, data, folder):
            found.setdefault(re.sub("[0-9]+", "N", reason)[:40], data)
    return found


def main() -> int:
    """The command line; 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = targets()
    parser.add_argument("--inputs", type=int, default=1_000_000, help="over all targets")
    parser.add_argument("--findings", type=Path, required=True, help="folder for what is found")
    parser.add_argument("--target", nargs="+", choices=known, default=list(known))
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    flags.findings.mkdir(parents=True, exist_ok=True)
    resource.setrlimit(resource.RLIMIT_AS, (2 * BYTES, resource.RLIM_INFINITY))  # more is a MemoryError, a finding
    each, count = -(-flags.inputs // len(flags.target)), 0
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        for name in flags.target:
            began = time.monotonic()
            found = fuzz(known[name], each, flags.seed, Path(folder))
            for number, (reason, data) in enumerate(found.items()):
                (flags.findings / f"{name}-{number}").write_bytes(data)
                print(f"{name}: {reason!r}: {name}-{number}")
            count += len(found)
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            seconds = time.monotonic() - began
            print(f"{name}: {each:,} inputs, {seconds:.0f} s, {len(found)} findings, {most} MB at most", flush=True)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
