"""Where a case's records are read: the data set's own folder, with its disk limited, or a slow view of the folder."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.storage import disks, slow_fs
from bench.storage.cases import Case
from bench.storage.disks import Disk
from pipelines.shards.index import index_path
from pipelines.shards.shard_set import ShardSet
from pipelines.system.pages import drop_pages, read_pages


@dataclass(frozen=True)
class Place:
    """A folder of shards as one case has it.

    Attributes:
        directory: the folder that a candidate reads.
        files: shards and their indexes in it.
        counter: the file with the counts of requests, or None.
        in_memory: whether the files are read into memory before a turn, or dropped.
        admit: puts a process under the limits of the case.
    """

    directory: Path
    files: tuple[Path, ...]
    counter: Path | None
    in_memory: bool
    admit: Callable[[int], None]

    def prepare(self, process: int) -> None:
        """Makes the state in which a turn begins, and puts its process under the limits."""
        for path in self.files:
            (read_pages if self.in_memory else drop_pages)(path)
        self.admit(process)


class Places:
    """Makes the places of one data set.

    Args:
        shards: the data set.
        disk: below its folder, or None.
        scratch: a folder for the program and the mount point of views.
    """

    def __init__(self, shards: ShardSet, disk: Disk | None, scratch: Path) -> None:
        self._files = files_of(shards.paths)
        self._directory = shards.paths[0].parent
        self._disk = disk
        self._scratch = scratch
        self._program: Path | None = None

    @contextmanager
    def opened(self, case: Case) -> Iterator[Place]:
        """The place of a case. What was changed for it is restored afterwards, also after an error or an interrupt."""
        if case.request_ms is not None:
            with self._view(case.request_ms) as place:
                yield place
            return
        counter = self._disk.counter if self._disk else None
        if not case.limits_disk:
            yield Place(self._directory, self._files, counter, case.in_memory, _free)
            return
        assert self._disk is not None  # `why_no_limit` was asked
        with disks.limited(self._disk, case) as admit:
            yield Place(self._directory, self._files, counter, False, admit)

    @contextmanager
    def _view(self, request_ms: float) -> Iterator[Place]:
        for path in self._files:
            read_pages(path)  # so that a request takes the given time and no more
        self._program = self._program or slow_fs.compile_program(self._scratch)
        view = self._scratch / "view"
        view.mkdir(exist_ok=True)
        files = tuple(view / path.name for path in self._files)
        with slow_fs.mounted(self._program, self._directory, request_ms, view):
            yield Place(view, files, view / slow_fs.COUNTS, False, _free)


def files_of(shards: Sequence[Path]) -> tuple[Path, ...]:
    """The shards and their indexes."""
    return tuple(file for path in shards for file in (path, index_path(path)))


def _free(process: int) -> None:
    """Puts a process under no limits."""
