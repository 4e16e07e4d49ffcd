"""Whether a run may be resumed: its recipe, its data set and its order of records have to be the same as before."""

import hashlib
from dataclasses import asdict
from typing import Any

from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines.errors import UserError
from pipelines.order.spec import ShuffleSpec
from pipelines.shards.dataset import DatasetInfo
from pipelines.shards.shard_set import ShardSet


def identity(info: DatasetInfo) -> dict[str, str]:
    """Hashes of everything in a data set that a plan depends on: shards, quarantine and classes."""
    found = {"classes": _digest([c.name for c in info.classes]), "label base": str(info.label_base)}
    for split, part in info.splits.items():
        found[f"{split} shards"] = _digest([shard.model_dump_json() for shard in part.shards])
        found[f"{split} quarantine"] = _digest(sorted(part.quarantine))
    return found


def check_same(run: RunDirectory, recipe: Recipe, dataset: dict[str, str]) -> None:
    """Checks that a run was begun with this recipe and this data set.

    Args:
        run: the run.
        recipe: the recipe it is to be resumed with.
        dataset: the `identity` of the data set.

    Raises:
        UserError: with the differences.
    """
    before, now = asdict(Recipe.load(run.recipe)), asdict(recipe)
    changes = [f"{name} {before[name]} → {now[name]}" for name in now if now[name] != before[name]]
    known = run.read_info().get("identity", {})
    changes += [f"data set: other {name}" for name in sorted(known | dataset) if known.get(name) != dataset.get(name)]
    if changes:
        raise UserError(
            f"its run has another recipe or data set ({'; '.join(changes)})",
            path=run.path,
            remedy="choose another output folder, or resume it anyway",
            setting="force_resume",
        )


def order_of(shuffle: ShuffleSpec, shards: ShardSet, seed: int) -> dict[str, Any]:
    """What a run keeps of the order of its records: its choices, complete, and a digest of the first epochs."""
    chosen = shuffle.resolved(shards)
    return {**asdict(chosen), "digest": chosen.digest(shards, seed)}


def check_order(run: RunDirectory, order: dict[str, Any]) -> None:
    """Checks that the records come in the order in which a run began.

    Args:
        run: the run; an earlier release wrote no digest.
        order: the `order_of` the resumed run.

    Raises:
        UserError: they come in another order, so that some would be repeated and others left out.
    """
    known = run.read_info().get("order", {}).get("digest")
    if known not in (None, order["digest"]):
        raise UserError(
            "its records would come in another order than before, because NumPy or kimagenet have changed",
            path=run.path,
            remedy=f"use the versions in {run.info.name}, or resume it anyway",
            setting="force_resume",
        )


def _digest(values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]
