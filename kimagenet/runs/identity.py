"""Whether a run may go on: the recipe and the data set have to be the ones it began with."""

import hashlib
from dataclasses import asdict
from typing import Any

from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from pipelines.errors import UserError
from pipelines.shards.dataset import DatasetInfo


def identity(info: DatasetInfo) -> dict[str, str]:
    """What a plan depends on, in hashes: shards, quarantine and classes of a data set."""
    found = {"classes": _digest([c.name for c in info.classes]), "label base": str(info.label_base)}
    for split, part in info.splits.items():
        found[f"{split} shards"] = _digest([shard.model_dump_json() for shard in part.shards])
        found[f"{split} quarantine"] = _digest(sorted(part.quarantine))
    return found


def _digest(values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def check_same(run: RunDirectory, recipe: Recipe, dataset: dict[str, str]) -> None:
    """Raises `UserError` with the differences if a run was begun with another recipe or data set."""
    before, now = asdict(Recipe.load(run.recipe)), asdict(recipe)
    changes = [f"{name} {before[name]} → {now[name]}" for name in now if now[name] != before[name]]
    known = run.read_info().get("identity", {})
    changes += [f"data set: other {name}" for name in sorted(known | dataset) if known.get(name) != dataset.get(name)]
    if changes:
        raise UserError(
            f"{run.path}: holds a run of another recipe or data set ({'; '.join(changes)}); choose another --output, "
            "or go on all the same with --resume --force-resume"
        )
