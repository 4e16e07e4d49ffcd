"""Whether a run may be resumed: its recipe and its data set have to be the same as before."""

import hashlib
from dataclasses import asdict
from typing import Any

from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines.errors import UserError
from pipelines.shards.dataset import DatasetInfo


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


def _digest(values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]
