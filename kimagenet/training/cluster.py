"""Which process of a run this is, from TF_CONFIG or SLURM's variables. Does not import TensorFlow for a single process.

TF_CONFIG is TensorFlow's: {"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}, with a
different index in each worker. Under SLURM (`srun`, one task for each worker) it is made from SLURM's variables.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from pipelines.errors import UserError, first_line
from pipelines.ranges import shortened

SLURM_PORT = 12345

_QUIET_SECONDS = 10.0
_REPEAT_SECONDS = 60.0
_POLL_SECONDS = 0.2
_CONNECT_SECONDS = 2.0
_SHOWN = 4  # workers in one message

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cluster:
    """The place of this process among the workers of a run.

    Attributes:
        size: how many workers there are.
        rank: the number of this one; 0 is the chief, the only one that writes files.
        addresses: "host:port" of each worker, by rank; empty for a single process.
    """

    size: int = 1
    rank: int = 0
    addresses: tuple[str, ...] = ()

    @property
    def is_chief(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> "Cluster":
        """Reads TF_CONFIG. If it is not set, or empty, and SLURM started several tasks, sets it.

        Raises:
            UserError: TF_CONFIG or SLURM's variables do not say which worker this is.
        """
        if not environment.get("TF_CONFIG", "").strip() and _slurm_tasks(environment) > 1:
            environment["TF_CONFIG"] = _of_slurm(environment)
        text = environment.get("TF_CONFIG", "").strip() or "{}"
        try:
            config = json.loads(text)
            jobs = {job: addresses for job, addresses in config.get("cluster", {}).items() if job != "evaluator"}
            if unknown := set(jobs) - {"chief", "worker"}:
                names = ", ".join(sorted(unknown))
                raise UserError(f"TF_CONFIG: a job is chief or worker, not {names}", remedy="correct or unset it")
            if not all(isinstance(found, list) for found in jobs.values()):
                raise TypeError
            addresses = tuple(map(str, [*jobs.get("chief", []), *jobs.get("worker", [])]))
            if len(addresses) <= 1:
                return cls()
            job, index = config["task"]["type"], config["task"]["index"]
            if (type(job), type(index)) != (str, int):
                raise TypeError
            rank = index + (len(jobs.get("chief", [])) if job == "worker" else 0)
        except (ValueError, AttributeError, TypeError, KeyError):
            what = 'TF_CONFIG is not in TensorFlow\'s format, {"cluster": {…}, "task": {…}}'
            raise UserError(what, remedy="correct or unset it") from None
        if job not in jobs or not 0 <= index < len(jobs[job]):
            raise UserError(f"TF_CONFIG: its cluster has no {job} {index}", remedy="correct or unset it")
        return cls(len(addresses), rank, addresses)

    def wait_for_all(self) -> None:
        """Waits until every worker can be reached, and says which ones are missing.

        TensorFlow waits as well, but in native code, where it prints nothing and no signal is handled. Each worker
        listens at its own address until it has reached the others. Then TensorFlow's server takes the address.
        """
        missing = [rank for rank in range(self.size) if rank != self.rank]
        began = said = time.monotonic()
        with _listening(self.addresses[self.rank], self.size):
            while missing := [rank for rank in missing if not _is_reachable(self.addresses[rank])]:
                now = time.monotonic()
                if now - said > (_QUIET_SECONDS if said == began else _REPEAT_SECONDS):
                    said = now
                    _log.warning("%s", self._waits_for(missing, now - began))
                time.sleep(_POLL_SECONDS)
        if said != began:
            _log.warning("all %d workers are there", self.size)

    def _waits_for(self, missing: list[int], seconds: float) -> str:
        names = [f"{rank} at {self.addresses[rank]}" for rank in missing[:_SHOWN]]
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        workers = "worker" if len(missing) == 1 else "workers"
        what = f"worker {self.rank} has waited {seconds:.0f} s for {workers} {', '.join(names)}{more}"
        return f"{what}; start what is missing, or correct TF_CONFIG; Ctrl-C or SIGTERM ends this worker"


@contextmanager
def _listening(address: str, count: int) -> Iterator[None]:
    """Accepts connections at the port of an address, if it is free: otherwise TensorFlow reports the problem."""
    _, port = _split(address)
    with ExitStack() as stack:
        with suppress(OSError, OverflowError):
            has_both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if has_both else socket.AF_INET
            server = socket.create_server(("", port), family=family, backlog=4 * count, dualstack_ipv6=has_both)
            stack.enter_context(server)
        yield


def _is_reachable(address: str) -> bool:
    try:
        socket.create_connection(_split(address), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError):
        return False
    return True


def _split(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[::1]:port"."""
    host, _, port = address.rpartition(":")
    try:
        return host.strip("[]"), int(port)
    except ValueError:
        remedy = "correct or unset it"
        raise UserError(f"TF_CONFIG: {address!r} is not host:port", remedy=remedy) from None


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """How many tasks an `srun` has; 1 outside of one."""
    text = environment.get("SLURM_STEP_NUM_TASKS", "").strip() or "1"
    try:
        return int(text)
    except ValueError:
        what = f"SLURM_STEP_NUM_TASKS is a number of tasks, not {shortened(text)}"
        raise UserError(what, remedy="correct or unset it") from None


def _of_slurm(environment: MutableMapping[str, str]) -> str:
    """TF_CONFIG for this task of an `srun`: each task is a worker, and those of one node have different ports."""
    import tensorflow as tf

    tasks = _slurm_tasks(environment)
    try:
        # The resolver counts ports by GPUs. SLURM decides which GPUs a task sees (its option --gpus-per-task).
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            jobs={"worker": tasks}, port_base=SLURM_PORT, gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False
        )
        cluster = resolver.cluster_spec().as_dict()
        job, index = resolver.get_task_info()
        if index is None:
            raise ValueError(f"there is no task {environment['SLURM_PROCID']}")
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        raise UserError(
            f"SLURM's variables name no workers ({first_line(error)})", remedy="set TF_CONFIG instead"
        ) from None
    return json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})
