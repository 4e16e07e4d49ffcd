"""Headers of tars are read as tarfile reads them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipelines import UserError
from pipelines.building.sources.tars import members

NAMES = ("a.jpg", "Bild ä.jpg", "x/y/z.jpg", f"{'long' * 20}/{'name' * 20}.jpg", f"{'longer' * 40}.jpg", "./b.jpg", "c")
KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


def write(path: Path, form: int, kinds: tuple[bytes, ...] = KINDS) -> bytes:
    with tarfile.open(path, "w", format=form) as archive:
        for number, name in enumerate(NAMES):
            for kind in kinds:
                member = tarfile.TarInfo(name)
                member.type = kind
                member.linkname = "a.jpg" if member.issym() or member.islnk() else ""
                member.size = 511 * number if member.isreg() else 0
                member.mtime, member.uid = (1.5, 1 << 22) if form == tarfile.PAX_FORMAT else (1, 7)
                archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path.read_bytes()


def seen(member: tarfile.TarInfo) -> tuple[str, bytes, int, int]:
    return member.name, member.type, member.size, member.offset_data


def theirs(path: Path) -> list[tuple[str, bytes, int, int]]:
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
        return [seen(member) for member in archive]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_of_every_format(tmp_path: Path, form: int) -> None:
    names = [name for name in NAMES if form != tarfile.USTAR_FORMAT or len(name) < 200]
    path = tmp_path / "a.tar"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.NAMES", tuple(names))
        write(path, form)
    assert [seen(member) for member in members(path, "a.tar", 0, None)] == theirs(path)
    assert len(theirs(path)) == len(names) * len(KINDS)


def test_damaged_headers_are_refused(tmp_path: Path) -> None:
    """Every byte that is changed in a header changes its checksum."""
    path = tmp_path / "a.tar"
    data = write(path, tarfile.GNU_FORMAT, (tarfile.REGTYPE,))
    with tarfile.open(path) as archive:
        starts = [member.offset for member in archive]
    rng = np.random.default_rng(0)
    for _ in range(300):
        position = int(rng.choice(starts)) + int(rng.integers(512))
        changed = bytearray(data)
        changed[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with pytest.raises(UserError, match="cut off or damaged"):
            list(members(path, "a.tar", 0, None))
