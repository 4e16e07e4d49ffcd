"""Unpacks compressed tars for the time of a build, because compressed files cannot be read at any offset.

Each tar is read once, in constant memory; the copies need as much disk as the images. A copy exists whole or not at
all, so a repeated build unpacks only what is missing. The last step of the build removes all copies.
"""

import gzip
import hashlib
import os
import threading
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError, reason
from pipelines.system.files import atomic_writer, remove_leftovers
from pipelines.system.progress import Progress, silent

_CHUNK = 1 << 20
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
    if not compressed:
        return list(paths)
    if scratch is None:
        raise UserError("the tar is compressed", path=compressed[0], remedy="give a folder to unpack it into")
    scratch.folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(scratch.folder)
    copies = {path: scratch.folder / _copy_name(path) for path in compressed}
    _unpack_all({path: copy for path, copy in copies.items() if not copy.exists()}, scratch)
    return [copies.get(path, path) for path in paths]


def _copy_name(path: Path) -> str:
    """The name of a tar's copy. It contains a checksum of path, size and time: a changed tar gets another copy."""
    stat = path.stat()
    digest = hashlib.sha256(f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return f"{path.stem.removesuffix('.tar')}-{digest.hexdigest()[:16]}.tar"


def _unpack_all(copies: dict[Path, Path], scratch: Scratch) -> None:
    """Writes tar -> copy in threads: zlib and the disk release the interpreter's lock."""
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
                copy.flush()  # a copy that is unpacked again then has the same time as before
                os.utime(copy.fileno(), ns=(os.stat(path).st_mtime_ns,) * 2)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"cut off or damaged ({error})", path=path, remedy="download it again") from None
        except OSError as error:
            remedy = "fix this and repeat the same command; it keeps the tars that are unpacked"
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
