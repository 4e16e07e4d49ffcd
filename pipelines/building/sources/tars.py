"""Images in tars. The members are listed once and read from the tar; nothing is unpacked to the name it has there.

A tar may be hostile: links, devices, sparse files, absolute names and names with `..` are rejected. A tar that is cut
off or damaged is refused; Python's tarfile alone would accept many of them as shorter tars.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pipelines.building.sources.source import Found, Place, RejectedFile, Stamp
from pipelines.errors import UserError, reason
from pipelines.system.reading import regular

_BLOCK = 512
_BLANK_CHECKSUM = 8 * ord(" ")  # the checksum of a header counts its own field as spaces
_MAX_HEADER = 1 << 20  # bytes of a long name or of pax headers; a hostile tar claims gigabytes


def list_tar(path: Path, shown: str, start: int = 0, end: int | None = None) -> Iterator[Found | RejectedFile]:
    """Lists the files of a tar. Names that begin with a dot and folders that are not empty are left out.

    Args:
        path: the file.
        shown: the name of the tar for messages.
        start: the first byte of the tar in the file; a tar in a tar needs no unpacking.
        end: the byte after its last; None is the end of the file.

    Yields:
        `Found` without a class for each file that is safe to read, `RejectedFile` for the others.

    Raises:
        UserError: the tar is cut off or damaged.
    """
    place = Place(str(path), shown, stamp_of(path))
    directories: list[str] = []
    inhabited = set()
    for member in members(path, shown, start, end):
        member.name = member.name.removeprefix("./")
        folder, _, name = member.name.rpartition("/")
        if name.startswith(".") and name != "..":
            continue
        inhabited.add(folder)
        if member.isdir():
            directories.append(member.name)
        elif reason := problem(member):
            yield RejectedFile("", f"{shown}/{member.name}", reason)
        else:
            yield Found("", place, name, start + member.offset_data, member.size)
    for directory in directories:
        if directory not in inhabited:
            yield RejectedFile("", f"{shown}/{directory}", "a folder, not a file")


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of a tar; raises `UserError`."""
    try:
        return Stamp.of(str(path))[:2]
    except OSError as error:
        raise UserError(reason(error), path=path) from None


def problem(member: tarfile.TarInfo) -> str:
    """Why a member is not safe to read; "" if it is."""
    if member.issym() or member.islnk():
        return "a link in a tar"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "an absolute name, or one with .."
    return ""


def members(path: Path, shown: str, start: int, end: int | None) -> Iterator[tarfile.TarInfo]:
    """The header of each member. Raises `UserError` if the tar does not end with a block of zeros."""
    last = -1
    try:
        with open(path, "rb", buffering=0, opener=regular) as stream:
            part = _Part(stream.fileno(), start, os.fstat(stream.fileno()).st_size if end is None else end)
            # With a fixed encoding names do not depend on the user's locale.
            with tarfile.TarFile(fileobj=part, encoding="utf-8", errors="surrogateescape", tarinfo=_Header) as archive:  # type: ignore[arg-type]
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                    if archive.offset <= last or member.size < 0:
                        raise tarfile.ReadError("a header leads backwards")
                    last = archive.offset
                    yield member
                part.seek(archive.offset)
                if part.read(_BLOCK) != bytes(_BLOCK):
                    raise tarfile.ReadError("no header and no end of the tar")
    except (OSError, tarfile.TarError, ValueError, RecursionError) as error:
        where = f" after byte {start + last}" if last >= 0 else ""
        what = f"{shown} is cut off or damaged{where} ({error})"
        raise UserError(what, path=path, remedy="download it again") from None


class _Header(tarfile.TarInfo):
    """A header. Those of plain files are read without most of tarfile's work: a tar of small images has many."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        """Reads a header. Anything unusual is left to tarfile, also a wrong checksum."""
        size, checksum, name = buf[124:136].rstrip(b" \0"), buf[148:156].rstrip(b" \0"), buf[:100].rstrip(b"\0")
        plain = buf[156:157] == tarfile.REGTYPE and b"\0" not in name and size.isdigit() and checksum.isdigit()
        if not plain or len(buf) != _BLOCK or int(checksum, 8) != sum(buf) - sum(buf[148:156]) + _BLANK_CHECKSUM:
            return super().frombuf(buf, encoding, errors)
        prefix = buf[345:500].split(b"\0", 1)[0]
        header = cls((prefix + b"/" + name if prefix else name).decode(encoding, errors))
        header.size, header.type = int(size, 8), tarfile.REGTYPE
        return header


class _Part:
    """Some bytes of a file, as a file object for tarfile."""

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
