"""Which process of a run this is, from TF_CONFIG or SLURM's variables. Does not import TensorFlow for a single process.

TF_CONFIG is TensorFlow's: {"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}, with a
different index in each worker. Under SLURM (`srun`, one task for each worker) it is made from SLURM's variables.
"""

import json
import os
from collections.abc import MutableMapping
from dataclasses import dataclass

from pipelines.errors import UserError

SLURM_PORT = 12345


@dataclass(frozen=True)
class Cluster:
    """The place of this process among the workers of a run.

    Attributes:
        size: how many workers there are.
        rank: the number of this one; 0 is the chief, the only one that writes files.
    """

    size: int = 1
    rank: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> "Cluster":
        """Reads TF_CONFIG. If it is not set and SLURM started several tasks, sets it.

        Raises:
            UserError: TF_CONFIG or SLURM's variables do not say which worker this is.
        """
        if "TF_CONFIG" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            environment["TF_CONFIG"] = _of_slurm(environment)
        text = environment.get("TF_CONFIG") or "{}"
        try:
            config = json.loads(text)
            jobs = {job: addresses for job, addresses in config.get("cluster", {}).items() if job != "evaluator"}
            if unknown := set(jobs) - {"chief", "worker"}:
                names = ", ".join(sorted(unknown))
                raise UserError(f"TF_CONFIG: a job is chief or worker, not {names}", remedy="correct or unset it")
            size = sum(len(addresses) for addresses in jobs.values())
            if size <= 1:
                return cls()
            job, index = config["task"]["type"], config["task"]["index"]
            rank = index + (len(jobs.get("chief", [])) if job == "worker" else 0)
        except (ValueError, AttributeError, TypeError, KeyError):
            what = 'TF_CONFIG is not in TensorFlow\'s format, {"cluster": {…}, "task": {…}}'
            raise UserError(what, remedy="correct or unset it") from None
        if job not in jobs or not 0 <= index < len(jobs[job]):
            raise UserError(f"TF_CONFIG: its cluster has no {job} {index}", remedy="correct or unset it")
        return cls(size, rank)


def _of_slurm(environment: MutableMapping[str, str]) -> str:
    """TF_CONFIG for this task of an `srun`: each task is a worker, and those of one node have different ports."""
    import tensorflow as tf

    tasks = int(environment["SLURM_STEP_NUM_TASKS"])
    try:
        # The resolver counts ports by GPUs. SLURM decides which GPUs a task sees (its option --gpus-per-task).
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            jobs={"worker": tasks}, port_base=SLURM_PORT, gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False
        )
        cluster = resolver.cluster_spec().as_dict()
        job, index = resolver.get_task_info()
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"SLURM's variables name no workers ({error})", remedy="set TF_CONFIG instead") from None
    return json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})
