"""What the threads of this process do at this moment: how many run, and how many wait for a disk (Linux)."""

from dataclasses import dataclass
from pathlib import Path

_THREADS = Path("/proc/self/task")
_RUNNING, _IN_STORAGE = "R", "D"  # proc_pid_stat(5): running or ready to run; waiting for a disk, cannot be interrupted


@dataclass(frozen=True)
class ThreadStates:
    """Numbers of threads.

    Attributes:
        running: that run or are ready to run, the caller included.
        in_storage: that wait for a disk, or for a file system in the network or in FUSE.
    """

    running: int
    in_storage: int


def thread_states(folder: Path = _THREADS) -> ThreadStates:
    """Counts the threads by their state; all 0 where the kernel does not tell."""
    states = [_state(path / "stat") for path in folder.iterdir()] if folder.is_dir() else []
    return ThreadStates(states.count(_RUNNING), states.count(_IN_STORAGE))


def _state(path: Path) -> str:
    """The state's letter; "" if the thread has ended."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]  # the name before it may contain anything
