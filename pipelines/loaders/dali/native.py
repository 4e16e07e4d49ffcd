"""The CPU operator in warp_colour.cc: compiled on first use, kept in the user's cache, loaded into DALI.

It replaces three of DALI's stock operators. They do the same work where it cannot be compiled.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from pipelines.errors import first_line
from pipelines.loader import Unavailable
from pipelines.system.files import cache_directory, write_atomic

_SOURCES = [Path(__file__).with_name(name) for name in ("warp_colour.cc", "warp_colour.h")]
FLAGS = (  # the tests compile with the same
    *("-std=c++17", "-O3", "-march=native", "-w"),
    # The part of -ffast-math that vectorizing needs. All of it would flush denormals to zero in the whole process.
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only", "-fassociative-math"),
)
_LIBRARY_FLAGS = (
    *("-fPIC", "-shared"),
    "-Wl,-z,now",  # a missing symbol must be an error when the library is loaded, not the end of the process later
)
_COMPILER_SECONDS = 600
_log = logging.getLogger(__name__)


class _NotCompiled(Exception):
    """The compiler is missing or fails."""


def available() -> bool:
    """Whether the operator is loaded."""
    return unavailable() is None


@functools.cache
def unavailable() -> Unavailable | None:
    """Why the operator could not be loaded, after a warning; None if it is loaded. Tries once a process."""
    try:
        _load_or_compile()
    except OSError as error:
        cause = f"{error.filename}: {error.strerror}" if error.filename else first_line(error)
        problem = Unavailable(cause, "set XDG_CACHE_HOME to a folder that can be written")
    except (ImportError, RuntimeError, _NotCompiled) as error:
        problem = Unavailable(first_line(error), "install g++, or name a C++17 compiler in CXX")
    else:
        return None
    _log.warning("loader dali: stock operators replace our CPU operator (slower), because %s", problem)
    return problem


def _load_or_compile() -> None:
    """Loads the library for this source, DALI and processor; compiles it if the cache has none that is whole and loads.

    The name of a library ends with the checksum of its content. So a damaged file is noticed before it is loaded, which
    would end the process by a signal.
    """
    name, folder = f"warp_colour-{_key()}", cache_directory() / "native"
    found = sorted(folder.glob(f"{name}-*.so"))
    damaged = [library for library in found if not _is_whole(library)]
    for library in found:
        if library not in damaged:
            try:
                return _load(library)
            except RuntimeError as error:  # compiled for other system libraries
                _log.warning("loader dali: %s", first_line(error))
    for library in damaged:
        _log.warning("loader dali: %s is damaged", library)
    _log.warning("loader dali: compiling the CPU operator; it is kept in %s", folder)
    content = _compile()
    library = folder / f"{name}-{_checksum(content)}.so"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(library, content)
    if not _is_whole(library):
        raise RuntimeError(f"{library} differs from what was written")
    for other in damaged:
        if other != library:
            other.unlink(missing_ok=True)
    return _load(library)


def _key() -> str:
    """Changes with everything that the library is made of."""
    dali = importlib.metadata.version("nvidia-dali-cuda120")
    sources = [source.read_bytes() for source in _SOURCES]
    made_of = (*sources, dali.encode(), " ".join(FLAGS + _LIBRARY_FLAGS).encode(), _processor())
    return hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _is_whole(library: Path) -> bool:
    """Whether the content has the checksum that the name says."""
    try:
        return library.stem.endswith(f"-{_checksum(library.read_bytes())}")
    except OSError:
        return False


def _compile() -> bytes:
    """The content of the shared library. Raises `_NotCompiled`."""
    compiler = _compiler()
    with tempfile.TemporaryDirectory(prefix="kimagenet-native-") as folder:
        output = Path(folder) / "warp_colour.so"
        command = [*compiler, *FLAGS, *_LIBRARY_FLAGS, *_includes(), str(_SOURCES[0]), "-o", str(output), *_libraries()]
        english = os.environ | {"LC_ALL": "C"}  # an error is recognized by this word
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=english,
                timeout=_COMPILER_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _NotCompiled(f"the compiler does not run: {first_line(error)}") from None
        if done.returncode:
            lines = done.stderr.decode(errors="replace").splitlines()
            reason = next((line for line in lines if "error" in line), f"{compiler[0]} failed")
            raise _NotCompiled(f"it does not compile: {reason}")
        if not output.exists():
            raise _NotCompiled(f"{compiler[0]} wrote no file")
        return output.read_bytes()


def _compiler() -> list[str]:
    """The command, read as make reads CXX: it may have arguments, as in "ccache g++"."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise _NotCompiled(f"CXX cannot be read: {first_line(error)}") from None
    found = named or [path for name in ("g++", "clang++") if (path := shutil.which(name))][:1]
    if not found:
        raise _NotCompiled("there is no C++ compiler")
    return found


def _includes() -> list[str]:
    """The folders of DALI's headers, and of CUDA's headers, which TensorFlow ships."""
    import tensorflow as tf
    from nvidia.dali import sysconfig

    cuda = Path(tf.sysconfig.get_include()) / "third_party/gpus/cuda"
    folders = [sysconfig.get_include_dir(), str(cuda / "include"), str(cuda / "libcudacxx/include")]
    return [f"-isystem{folder}" for folder in folders]


def _libraries() -> list[str]:
    from nvidia.dali import sysconfig

    return sysconfig.get_link_flags()


def _load(library: Path) -> None:
    """Loads the library into DALI. Raises `RuntimeError`."""
    from nvidia.dali import fn, plugin_manager

    try:
        plugin_manager.load_library(str(library))
    except RuntimeError as error:
        raise RuntimeError(f"{library} does not load: {first_line(error)}") from None
    if not hasattr(fn, "kimagenet_warp_colour"):
        raise RuntimeError(f"{library} does not contain the operator")
    ctypes.CDLL(str(library)).kimagenet_leave_out_error_pages()


def _processor() -> bytes:
    """What -march=native depends on. A home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.machine().encode()
    return b"\n".join(sorted({line for line in lines if line.startswith((b"model name", b"flags", b"Features"))}))
