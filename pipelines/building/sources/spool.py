"""Compressed tars become plain ones for the time of a build: what is compressed cannot be read at random.

One pass over each tar, in constant memory; it takes as much disk as the tars hold. A copy is there whole or not at
all, so an interrupted build unpacks only what is missing; the last step of the build removes all of them.
"""

import gzip
import hashlib
import threading
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.system.files import atomic_writer
from pipelines.system.progress import Progress, silent

_CHUNK = 1 << 20
_TICK = 0.5  # seconds between two looks at how far the threads are


@dataclass(frozen=True)
class Scratch:
    """Where a source may keep files for the time of a build, and with how many threads it may fill it."""

    folder: Path
    workers: int = 1
    progress: Progress = silent


def plain_tars(paths: Sequence[Path], scratch: Scratch | None) -> list[Path]:
    """The same tars uncompressed: themselves if they are, else copies in `scratch`. Raises `UserError`, `OSError`."""
    compressed = [path for path in paths if path.suffix == ".gz"]
    if not compressed:
        return list(paths)
    if scratch is None:
        raise UserError(f"{compressed[0]}: compressed; it needs a folder to be unpacked to")
    scratch.folder.mkdir(parents=True, exist_ok=True)
    for leftover in scratch.folder.glob(".*.tmp"):
        leftover.unlink()
    copies = {path: scratch.folder / _copy_name(path) for path in compressed}
    _unpack_all({path: copy for path, copy in copies.items() if not copy.exists()}, scratch)
    return [copies.get(path, path) for path in paths]


def _copy_name(path: Path) -> str:
    """Tells this file from another of its name, and from itself once it has been changed."""
    stat = path.stat()
    digest = hashlib.sha256(f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return f"{path.stem.removesuffix('.tar')}-{digest.hexdigest()[:16]}.tar"


def _unpack_all(copies: dict[Path, Path], scratch: Scratch) -> None:
    """In threads: zlib and the disk let go of the interpreter's lock."""
    total = sum(path.stat().st_size for path in copies)
    done = dict.fromkeys(copies, 0)  # compressed bytes read
    stop = threading.Event()

    def unpack(path: Path) -> None:
        try:
            with open(path, "rb") as raw, gzip.open(raw) as stream, atomic_writer(copies[path]) as copy:
                while chunk := stream.read(_CHUNK):
                    if stop.is_set():
                        raise InterruptedError("interrupted")
                    copy.write(chunk)
                    done[path] = raw.tell()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: cut off or damaged ({error}); get it again") from None
        except OSError as error:
            what = f"{copies[path]}: {error.strerror or error}"
            raise UserError(f"{what}; tars that are unpacked are kept, the same command goes on from there") from None

    with ThreadPoolExecutor(scratch.workers) as pool:
        try:
            waiting = {pool.submit(unpack, path) for path in copies}
            while waiting:
                finished, waiting = wait(waiting, timeout=_TICK, return_when="FIRST_COMPLETED")
                scratch.progress("unpacking", sum(done.values()) >> 20, total >> 20)
                for future in finished:
                    future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
