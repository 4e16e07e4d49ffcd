"""The kinds of storage that are compared, and which of them this machine can imitate. Pure functions of facts."""

from dataclasses import dataclass

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Case:
    """Where the records come from.

    Attributes:
        name: as `--cases` takes it.
        title: its name in tables and charts.
        in_memory: whether the shards are read into memory before; otherwise their pages are dropped.
        request_ms: milliseconds that each read request takes, through a view of the folder; None: no view.
        bytes_per_s: the limit of the disk; None: none.
        requests_per_s: the limit of the disk; None: none.
        read_ahead_kb: the read-ahead of the disk while the case is measured; None: as it is.
    """

    name: str
    title: str
    in_memory: bool = False
    request_ms: float | None = None
    bytes_per_s: int | None = None
    requests_per_s: int | None = None
    read_ahead_kb: int | None = None

    @property
    def limits_disk(self) -> bool:
        """Whether the disk is limited."""
        return self.bytes_per_s is not None

    @property
    def changes_system(self) -> bool:
        """Whether measuring it mounts something or changes a setting of the machine."""
        return self.limits_disk or self.request_ms is not None

    @property
    def records_from(self) -> str:
        """ "memory" or "storage", for tables."""
        return "memory" if self.in_memory else "storage"


MEMORY = Case("memory", "memory", in_memory=True)
CASES = (
    MEMORY,
    Case("cold", "this machine's storage"),
    Case("network-2ms", "network file system, 2 ms a request", request_ms=2.0),
    Case("network-10ms", "network file system, 10 ms a request", request_ms=10.0),
    Case(
        "cloud-volume",
        "cloud volume: 125 MB/s, 3,000 requests/s",
        bytes_per_s=125 * MEGABYTE,
        requests_per_s=3000,
        read_ahead_kb=128,
    ),
    Case(
        "hard-disk",
        "hard disk: 150 MB/s, 150 requests/s",
        bytes_per_s=150 * MEGABYTE,
        requests_per_s=150,
        read_ahead_kb=8192,
    ),
)


@dataclass(frozen=True)
class Machine:
    """What decides which cases can be measured.

    Attributes:
        may_change: whether the user allows changes to the system (`--throttle`).
        shards_bytes: size of all shards of the split.
        memory_bytes: memory that this process may use.
        kept: the share of the shards' pages that stay in memory after they were dropped; None: unknown.
        no_view: why no view with slow requests can be mounted, and the remedy; "" if it can.
        no_limit: why the disk cannot be limited, and the remedy; "" if it can.
    """

    may_change: bool
    shards_bytes: int
    memory_bytes: int
    kept: float | None
    no_view: str = ""
    no_limit: str = ""


KEPT = 0.05  # the largest share of pages that may stay in memory


def why_not(case: Case, machine: Machine) -> str:
    """Why a case cannot be measured here, with the remedy; "" if it can."""
    fits = machine.shards_bytes * (2 if case.request_ms is not None else 1) < 0.6 * machine.memory_bytes
    if (case.in_memory or case.request_ms is not None) and not fits:
        # A view is measured over shards that are in memory, so that a request takes the given time and no more.
        need = "twice the shards" if case.request_ms is not None else "the shards"
        size = f"{machine.shards_bytes / 1e9:.1f} GB, of {machine.memory_bytes / 1e9:.1f} GB of memory"
        return f"{need} must fit into 60 % of the memory, and they have {size}; give a smaller data set"
    if not case.in_memory and case.request_ms is None and machine.kept is not None and machine.kept > KEPT:
        stay = f"{machine.kept:.0%} of the shards' pages stay in memory when they are dropped"
        return f"{stay}; give a data set on a disk, not in /dev/shm, and end programs that read it"
    if case.changes_system and not machine.may_change:
        return "it changes the system while it runs; add --throttle, as root"
    if case.request_ms is not None:
        return machine.no_view
    return machine.no_limit if case.limits_disk else ""


def possible_rate(case: Case, rate_from_memory: float, record_bytes: float) -> float:
    """The images/s that a loader could have: its rate from memory, or what the storage delivers if that is less.

    Args:
        case: where records come from.
        rate_from_memory: of the same loader, images/s.
        record_bytes: mean size of a record.
    """
    if case.bytes_per_s is None:
        return rate_from_memory
    return min(rate_from_memory, case.bytes_per_s / record_bytes)
