"""Finds the shards of a folder by their names."""

from pathlib import Path

from pipelines.errors import UserError
from pipelines.shards.contents import look
from pipelines.shards.shard_names import ShardName, shards_among


def find_shards(directory: Path) -> dict[str, list[str]]:
    """Finds the shards of a folder by their names.

    Args:
        directory: the folder.

    Returns:
        The file names of each split, in order.

    Raises:
        UserError: there are no shards, one is missing, or there are shards of several data sets.
    """
    if not directory.is_dir():
        what = "a file, not a folder" if directory.exists() else "no such folder"
        raise UserError(what, path=directory, remedy="choose the folder of the shards" * directory.exists())
    found: dict[str, dict[str, list[ShardName]]] = {}
    for shard in shards_among(path.name for path in directory.iterdir()):
        found.setdefault(shard.split, {}).setdefault(shard.pattern, []).append(shard)
    if not found:
        there = look(directory)
        what = f"no shards (train-00000-of-…) in this folder; it has {there.what}"
        raise UserError(what, path=directory, remedy=there.remedy)
    return {split: _in_order(directory, sets) for split, sets in sorted(found.items())}


def _in_order(directory: Path, sets: dict[str, list[ShardName]]) -> list[str]:
    """The file names of a split, from its shards by their pattern."""
    if len(sets) > 1:
        what = f"has shards of several data sets, {' and '.join(sorted(sets))}"
        raise UserError(what, path=directory, remedy="keep one of them")
    ((shards),) = sets.values()
    numbers, any_shard = {shard.number for shard in shards}, shards[0]
    if missing := sorted(set(range(any_shard.total)) - numbers):
        path = directory / any_shard.with_number(missing[0])
        raise UserError("the shard is missing", path=path, remedy="copy or build it again")
    if len(numbers) > any_shard.total:
        path = directory / any_shard.with_number(max(numbers))
        last = any_shard.with_number(any_shard.total - 1)
        raise UserError(f"the number is larger than that of {last}", path=path, remedy="remove the file")
    return [any_shard.with_number(number) for number in range(any_shard.total)]
