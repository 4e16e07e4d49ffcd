"""Which process of a run this is, from TF_CONFIG or SLURM's variables. No TensorFlow where there is only one.

TF_CONFIG is TensorFlow's own: {"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}, in
every worker with its own index. Under SLURM (`srun`, one task for each worker) it is made from SLURM's variables.
"""

import json
import os
from collections.abc import MutableMapping
from dataclasses import dataclass

from pipelines.errors import UserError

SLURM_PORT = 12345


@dataclass(frozen=True)
class Cluster:
    """This worker's `rank` among the `size` workers of a run; rank 0 is the chief, which alone writes."""

    size: int = 1
    rank: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> "Cluster":
        """Reads TF_CONFIG; where SLURM started several tasks and there is none, sets it. Raises `UserError`."""
        if "TF_CONFIG" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            environment["TF_CONFIG"] = _of_slurm(environment)
        text = environment.get("TF_CONFIG") or "{}"
        try:
            config = json.loads(text)
            jobs = {job: addresses for job, addresses in config.get("cluster", {}).items() if job != "evaluator"}
            if unknown := set(jobs) - {"chief", "worker"}:
                raise UserError(f"TF_CONFIG: jobs are chief and worker, not {', '.join(sorted(unknown))}")
            size = sum(len(addresses) for addresses in jobs.values())
            if size <= 1:
                return cls()
            job, index = config["task"]["type"], config["task"]["index"]
            rank = index + (len(jobs.get("chief", [])) if job == "worker" else 0)
        except (ValueError, AttributeError, TypeError, KeyError):
            raise UserError('TF_CONFIG is not what TensorFlow reads ({"cluster": {…}, …}); unset or mend it') from None
        if job not in jobs or not 0 <= index < len(jobs[job]):
            raise UserError(f"TF_CONFIG: there is no {job} {index} in its cluster; unset or mend it")
        return cls(size, rank)


def _of_slurm(environment: MutableMapping[str, str]) -> str:
    """TF_CONFIG for this task of an `srun`: all the tasks are workers, one port for each on a node."""
    import tensorflow as tf

    tasks = int(environment["SLURM_STEP_NUM_TASKS"])
    try:
        # The resolver counts ports by GPUs. Which GPUs a task sees is SLURM's business (--gpus-per-task), not ours.
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            jobs={"worker": tasks}, port_base=SLURM_PORT, gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False
        )
        cluster = resolver.cluster_spec().as_dict()
        job, index = resolver.get_task_info()
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"SLURM's variables name no workers ({error}); set TF_CONFIG instead") from None
    return json.dumps({"cluster": cluster, "task": {"type": job, "index": index}})
