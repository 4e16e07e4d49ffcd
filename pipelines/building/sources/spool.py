"""Unpacks compressed tars and Parquet for the time of a build, because such files cannot be read at any offset.

Each file is read once, in constant memory; the copies need as much disk as the images. A copy exists whole or not at
all, so a repeated build unpacks only what is missing. The last step of the build removes all copies.
"""

import gzip
import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipelines.errors import UserError, reason
from pipelines.system.files import atomic_writer, remove_leftovers
from pipelines.system.progress import Progress, silent

_CHUNK = 1 << 20
# Writes the copy of a file, and reports now and then how many bytes of the file it has read.
Unpack = Callable[[Path, BinaryIO, Callable[[int], None]], None]
_TICK = 0.5  # seconds between two reports of progress


@dataclass(frozen=True)
class Scratch:
    """A folder for temporary files of a source.

    Attributes:
        folder: the folder; the build removes it at its end.
        workers: number of threads that may write there.
        progress: called with the number of compressed megabytes done.
    """

    folder: Path
    workers: int = 1
    progress: Progress = silent


def plain_tars(paths: Sequence[Path], scratch: Scratch | None) -> list[Path]:
    """Unpacks the tars among `paths` that are compressed.

    Args:
        paths: tars; those that end in .gz are compressed.
        scratch: where copies are written.

    Returns:
        For each path an uncompressed tar with the same content.

    Raises:
        UserError: a tar is damaged, or a copy cannot be written.
        OSError: the folder cannot be made.
    """
    compressed = [path for path in paths if path.suffix == ".gz"]
    copies = dict(zip(compressed, unpacked(compressed, scratch, _gunzip, ".tar"), strict=True))
    return [copies.get(path, path) for path in paths]


def unpacked(paths: Sequence[Path], scratch: Scratch | None, write: Unpack, suffix: str) -> list[Path]:
    """Makes a copy of each file that can be read at any offset.

    Args:
        paths: the files.
        scratch: where copies are written.
        write: writes the copy of one file.
        suffix: of the copies' names.

    Returns:
        The copies, in the order of the files.

    Raises:
        UserError: a file is damaged, or a copy cannot be written.
        OSError: the folder cannot be made.
    """
    if not paths:
        return []
    if scratch is None:
        raise UserError("the file has to be unpacked", path=paths[0], remedy="give a folder to unpack it into")
    scratch.folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(scratch.folder)
    copies = {path: scratch.folder / _copy_name(path, suffix) for path in paths}
    _unpack_all({path: copy for path, copy in copies.items() if not copy.exists()}, scratch, write)
    return list(copies.values())


def _gunzip(path: Path, copy: BinaryIO, report: Callable[[int], None]) -> None:
    try:
        with open(path, "rb") as raw, gzip.open(raw) as stream:
            while chunk := stream.read(_CHUNK):
                copy.write(chunk)
                report(raw.tell())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"cut off or damaged ({error})", path=path, remedy="download it again") from None


def _copy_name(path: Path, suffix: str) -> str:
    """The name of a tar's copy. It contains a checksum of path, size and time: a changed tar gets another copy."""
    stat = path.stat()
    digest = hashlib.sha256(f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return f"{path.stem.removesuffix('.tar')}-{digest.hexdigest()[:16]}{suffix}"


def _unpack_all(copies: dict[Path, Path], scratch: Scratch, write: Unpack) -> None:
    """Writes file -> copy in threads: decompression and the disk release the interpreter's lock."""
    total = sum(path.stat().st_size for path in copies)
    done = dict.fromkeys(copies, 0)  # compressed bytes read
    stop = threading.Event()

    def unpack(path: Path) -> None:
        def report(count: int) -> None:
            if stop.is_set():
                raise InterruptedError("interrupted")
            done[path] = count

        try:
            with atomic_writer(copies[path]) as copy:
                write(path, copy, report)
                copy.flush()  # a copy that is unpacked again then has the same time as before
                os.utime(copy.fileno(), ns=(os.stat(path).st_mtime_ns,) * 2)
        except OSError as error:
            remedy = "fix this and repeat the same command; it keeps the files that are unpacked"
            raise UserError(reason(error), path=copies[path], remedy=remedy) from None

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
