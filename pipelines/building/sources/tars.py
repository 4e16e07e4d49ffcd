"""Images in tars, read where they lie: the members are listed once, nothing is ever unpacked to the name it asks for.

A tar may come from anywhere: links, devices, sparse files, absolute names and names with `..` are rejected, and a tar
that ends too early or makes no sense is refused (Python's tarfile alone would take it for a shorter one).
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pipelines.building.sources.source import Found, Place, Rejected
from pipelines.errors import UserError

_BLOCK = 512
_MAX_HEADER = 1 << 20  # bytes of a long name or of pax headers; a hostile tar claims gigabytes


def list_tar(path: Path, shown: str, start: int = 0, end: int | None = None) -> Iterator[Found | Rejected]:
    """The files of a tar that are safe to read, as `Found` with no class, and what is not, as `Rejected`.

    Args:
        path: the file; the tar is its bytes from `start` to `end`, so a tar in a tar needs no unpacking.
        shown: the tar's name as users know it.

    Names that begin with a dot are passed over, and so are directories in which something lies. Raises `UserError`.
    """
    place = Place(str(path), shown)
    directories: list[str] = []
    inhabited = set()
    for member in _members(path, shown, start, end):
        member.name = member.name.removeprefix("./")
        folder, _, name = member.name.rpartition("/")
        if name.startswith(".") and name != "..":
            continue
        inhabited.add(folder)
        if member.isdir():
            directories.append(member.name)
        elif reason := _problem(member):
            yield Rejected("", f"{shown}/{member.name}", reason)
        else:
            yield Found("", place, name, start + member.offset_data, member.size)
    for directory in directories:
        if directory not in inhabited:
            yield Rejected("", f"{shown}/{directory}", "Is a directory")


def _problem(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link in a tar"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "an absolute name, or one with .."
    return ""


def _members(path: Path, shown: str, start: int, end: int | None) -> Iterator[tarfile.TarInfo]:
    """Every member's header. Raises `UserError` unless the tar is whole: up to the block of zeros that ends it."""
    last = -1
    try:
        with open(path, "rb", buffering=0) as stream:
            part = _Part(stream.fileno(), start, os.fstat(stream.fileno()).st_size if end is None else end)
            # The encoding is fixed: names must not depend on the user's locale.
            with tarfile.TarFile(fileobj=part, encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[arg-type]
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # or it would keep all of them
                    if archive.offset <= last or member.size < 0:
                        raise tarfile.ReadError("a header leads backwards")
                    last = archive.offset
                    yield member
                part.seek(archive.offset)
                if part.read(_BLOCK) != bytes(_BLOCK):
                    raise tarfile.ReadError("no header and no end of the tar")
    except (OSError, tarfile.TarError, ValueError, RecursionError) as error:
        where = f" after byte {start + last}" if last >= 0 else ""
        raise UserError(f"{path}: {shown} is cut off or damaged{where} ({error}); get it again") from None


class _Part:
    """Some bytes of a file as the file object that tarfile asks for."""

    def __init__(self, descriptor: int, start: int, end: int) -> None:
        self._descriptor, self._start, self._size = descriptor, start, end - start
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        size = max(0, min(size, self._size - self._position))
        data = os.pread(self._descriptor, size, self._start + self._position)
        self._position += len(data)
        return data
