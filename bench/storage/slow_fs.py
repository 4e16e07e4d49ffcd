"""A view of a folder in which each read request takes a given time: compiles and mounts slow_fs.c. Needs FUSE."""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.errors import UserError

SOURCE = Path(__file__).with_suffix(".c")
COUNTS = ".stats"
_PACKAGES = "`apt-get install gcc pkg-config libfuse3-dev fuse3`"
_START_SECONDS = 10.0


def why_no_view(device: Path = Path("/dev/fuse")) -> str:
    """Why no view can be mounted here, with the remedy; "" if it can."""
    missing = [program for program in ("gcc", "pkg-config", "fusermount3") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} not found; install with {_PACKAGES}"
    if subprocess.run(["pkg-config", "--exists", "fuse3"], check=False).returncode:
        return f"the headers of libfuse3 are not installed; install them with {_PACKAGES}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} cannot be opened; in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
    return ""


def compile_program(folder: Path) -> Path:
    """Compiles the program.

    Args:
        folder: gets the program.

    Returns:
        Its path.

    Raises:
        UserError: the compiler fails.
    """
    program = folder / SOURCE.stem
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True)
    command = ["gcc", "-O2", str(SOURCE), "-o", str(program), *shlex.split(flags.stdout)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"gcc fails: {done.stderr.strip()[:300]}", path=SOURCE, remedy=f"install {_PACKAGES}")
    return program


@contextmanager
def mounted(program: Path, folder: Path, request_ms: float, place: Path) -> Iterator[None]:
    """Within it, `place` shows the files of `folder`. Afterwards it is unmounted, whatever happened.

    Args:
        program: as `compile_program` returns it.
        folder: what is shown.
        request_ms: milliseconds that each read request takes.
        place: an empty folder.

    Raises:
        UserError: the view does not come.
    """
    command = [str(program), str(folder), str(round(1000 * request_ms)), str(place)]
    # In a separate session, so that Ctrl-C does not end it before its readers.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _wait_for(place / COUNTS, process)
        yield
    finally:
        process.terminate()  # it unmounts the view, also if a file in it is open
        try:
            process.wait(_START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(OSError):
            if os.path.ismount(place):
                subprocess.run(["fusermount3", "-u", "-z", str(place)], check=False, capture_output=True)
        if process.stderr is not None:
            process.stderr.close()


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            said = process.stderr.read().strip() if process.poll() is not None and process.stderr else "no answer"
            what = f"the slow view cannot be mounted: {said or 'the program has ended'}"
            raise UserError(what, path=path.parent, remedy="run the command as root")
        time.sleep(0.02)
