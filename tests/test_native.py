"""The compiled CPU operator in the user's cache: checked before it is loaded, compiled again once if it is damaged."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.loaders import dali
from pipelines.loaders.dali import native

CONTENT = b"\x7fELF" + bytes(range(256)) * 40
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda content: content[:1000],
    "empty": lambda content: b"",
    "zeros at the end": lambda content: content[:5000] + bytes(len(content) - 5000),
    "one bit": lambda content: content[:99] + bytes([content[99] ^ 1]) + content[100:],
    "longer": lambda content: content + b"\0",
}


class Fake:
    """Stands for the compiler and for DALI.

    Attributes:
        compiled: how often the operator was compiled.
        loaded: what was loaded.
        refused: contents that DALI does not load.
    """

    def __init__(self) -> None:
        self.compiled = 0
        self.loaded: list[bytes] = []
        self.refused: set[bytes] = set()

    def compile(self) -> bytes:
        self.compiled += 1
        return CONTENT

    def load(self, library: Path) -> None:
        content = library.read_bytes()
        if content in self.refused:
            raise RuntimeError(f"{library} does not load: wrong architecture")
        self.loaded.append(content)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache [1]"))
    native.unavailable.cache_clear()
    yield tmp_path / "cache [1]" / "kimagenet" / "native"
    native.unavailable.cache_clear()


@pytest.fixture
def fake(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(native, "_compile", fake.compile)
    monkeypatch.setattr(native, "_load", fake.load)
    monkeypatch.setattr(native, "_key", lambda: "0123456789abcdef")
    return fake


def again() -> str:
    """What a new process finds: "" if the operator is loaded, else the reason."""
    native.unavailable.cache_clear()
    return str(native.unavailable() or "")


def test_it_is_compiled_once(cache: Path, fake: Fake) -> None:
    assert again() == again() == ""
    assert fake.compiled == 1
    assert fake.loaded == [CONTENT] * 2
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_compiled_again_and_never_loaded(
    cache: Path, fake: Fake, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    again()
    (library,) = cache.iterdir()
    library.write_bytes(DAMAGES[damage](CONTENT))
    assert again() == again() == ""
    assert fake.compiled == 2
    assert fake.loaded == [CONTENT] * 3
    assert [line for line in caplog.messages if "is damaged" in line] == [f"loader dali: {library} is damaged"]


def test_a_damaged_library_of_another_compiler_is_removed(cache: Path, fake: Fake) -> None:
    cache.mkdir(parents=True)
    other = cache / "warp_colour-0123456789abcdef-0000000000000000.so"
    other.write_bytes(b"damaged")
    assert again() == ""
    assert not other.exists()
    assert fake.loaded == [CONTENT]


def test_a_library_of_another_system_is_kept_beside_ours(cache: Path, fake: Fake) -> None:
    cache.mkdir(parents=True)
    other = cache / f"warp_colour-0123456789abcdef-{native._checksum(b'other')}.so"
    other.write_bytes(b"other")
    fake.refused.add(b"other")
    assert again() == again() == ""
    assert fake.compiled == 1
    assert other.exists()


def test_what_does_not_load_after_it_was_compiled_is_not_tried_again(cache: Path, fake: Fake) -> None:
    fake.refused.add(CONTENT)
    assert "does not load" in again()
    assert fake.compiled == 1


def test_a_disk_that_damages_what_is_written(cache: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "write_atomic", lambda path, data: path.write_bytes(data[:100]))
    assert "differs from what was written" in again()
    assert fake.loaded == []


def test_a_cache_that_cannot_be_written(cache: Path, fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    cache.parent.parent.write_text("a file")
    assert again().endswith("Not a directory (set XDG_CACHE_HOME to a folder that can be written)")
    assert sum("stock operators" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(
    ("named", "command"),
    [
        ("ccache g++", ["ccache", "g++"]),
        ("  clang++   -stdlib=libc++ ", ["clang++", "-stdlib=libc++"]),
        ("'/opt/my compiler/g++' -m64", ["/opt/my compiler/g++", "-m64"]),
        ("/opt/my\\ compiler/g++", ["/opt/my compiler/g++"]),
    ],
)
def test_cxx_is_read_as_make_reads_it(named: str, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", named)
    assert native._compiler() == command


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_cxx_is_the_default(empty: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "clang++" else None)
    monkeypatch.delenv("CXX", raising=False) if empty is None else monkeypatch.setenv("CXX", empty)
    assert native._compiler() == ["/usr/bin/clang++"]


FAILING = {
    "'": "CXX cannot be read: No closing quotation",
    "/no/such/compiler": "the compiler does not run: [Errno 2] No such file or directory: '/no/such/compiler'",
    "sh -c 'exit 3'": "it does not compile: sh failed",
    "sh -c 'printf \"note\\\\n\\\\377.cc:1: error: bad\" >&2; exit 1'": "it does not compile: \ufffd.cc:1: error: bad",
    "true": "true wrote no file",
}


@pytest.mark.parametrize("named", FAILING)
def test_a_compiler_that_fails_is_one_line(
    cache: Path, named: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for function in ("_includes", "_libraries"):
        monkeypatch.setattr(native, function, list)
    monkeypatch.setattr(native, "_key", lambda: "0")
    monkeypatch.setenv("CXX", named)
    assert again() == f"{FAILING[named]} (install g++, or name a C++17 compiler in CXX)"
    assert sum("stock operators" in line for line in caplog.messages) == 1
    assert not cache.exists()


@pytest.mark.slow
def test_a_library_that_was_cut_off_does_not_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if dali.unavailable("cpu") or not native.available():
        pytest.skip("the CPU operator does not compile here")
    name, usual = native._key(), native.cache_directory() / "native"
    library = next(usual.glob(f"warp_colour-{name}-*.so"))
    damaged = tmp_path / "kimagenet" / "native" / library.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(library.read_bytes()[:30_000])
    script = "from pipelines.loaders.dali import native; assert native.unavailable() is None"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "is damaged" in done.stderr
    (rebuilt,) = damaged.parent.iterdir()
    assert native._is_whole(rebuilt)
