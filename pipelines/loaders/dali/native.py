"""The CPU operator in warp_colour.cc: compiled on first use, kept in the user's cache, loaded into DALI.

It replaces three of DALI's stock operators. They do the same work where it cannot be compiled.
"""

import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

from pipelines.errors import first_line
from pipelines.loader import Unavailable
from pipelines.system.files import cache_directory, write_atomic

_SOURCE = Path(__file__).with_name("warp_colour.cc")
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w"),
    # The part of -ffast-math that vectorizing needs. All of it would flush denormals to zero in the whole process.
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only", "-fassociative-math"),
    "-Wl,-z,now",  # a missing symbol must be an error when the library is loaded, not the end of the process later
)
_log = logging.getLogger(__name__)


def available() -> bool:
    """Whether the operator is loaded."""
    return unavailable() is None


@functools.cache
def unavailable() -> Unavailable | None:
    """Why the operator could not be loaded, after a warning; None if it is loaded. Tries once a process."""
    try:
        _load(_compiled())
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        problem = Unavailable(_first_error_line(error), "install g++, or name a C++17 compiler in CXX")
        _log.warning("loader dali: stock operators replace our CPU operator (slower), because %s", problem)
        return problem
    return None


def _compiled() -> Path:
    """The shared library for this source, DALI and processor. Compiles it if it is not in the cache."""
    dali = importlib.metadata.version("nvidia-dali-cuda120")
    made_of = (_SOURCE.read_bytes(), dali.encode(), " ".join(_FLAGS).encode(), _processor())
    key = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]
    library = cache_directory() / "native" / f"warp_colour-{key}.so"
    if not library.exists():
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            raise RuntimeError("there is no C++ compiler")
        _log.warning("loader dali: compiling the CPU operator; it is kept in %s", library)
        library.parent.mkdir(parents=True, exist_ok=True)
        temporary = library.with_suffix(f".{os.getpid()}.tmp")
        try:
            command = [compiler, *_FLAGS, *_includes(), str(_SOURCE), "-o", str(temporary), *_libraries()]
            subprocess.run(command, check=True, capture_output=True, text=True)
            write_atomic(library, temporary.read_bytes())
        finally:
            temporary.unlink(missing_ok=True)
    return library


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
    from nvidia.dali import fn, plugin_manager

    plugin_manager.load_library(str(library))
    if not hasattr(fn, "kimagenet_warp_colour"):
        raise RuntimeError(f"{library} does not contain the operator")


def _processor() -> bytes:
    """What -march=native depends on. A home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.machine().encode()
    return b"\n".join(sorted({line for line in lines if line.startswith((b"model name", b"flags", b"Features"))}))


def _first_error_line(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in error.stderr.splitlines() if "error" in line] or [f"{error.cmd[0]} failed"]
        return f"it does not compile: {lines[0]}"
    return first_line(error)
