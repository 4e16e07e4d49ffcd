"""Index files that a plan writes into those of an earlier one."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import AugmentSpec, EpochPlan, ShardSet
from pipelines.loaders.dali import index_files
from pipelines.loaders.dali.index_files import IndexFolders, run_starts, write_indexes
from pipelines.stream import Segment


@pytest.fixture(scope="module")
def plan(tiny_dataset: Path) -> EpochPlan:
    return EpochPlan(ShardSet.open(tiny_dataset, "train"), AugmentSpec.standard(), batch_size=8, image_size=8)


def records(segment: Segment, folder: Path) -> list[tuple[str, int, int]]:
    """Shard, offset and length of each record in the order in which DALI reads them."""
    found = []
    for shard, index in zip(*write_indexes(segment, folder, lambda: None), strict=True):
        lines = Path(index).read_text().splitlines()
        found += [(shard, *map(int, line.split())) for line in lines]
    return found


def planned(segment: Segment) -> list[tuple[str, int, int]]:
    shards = segment.plan.shards
    return [(str(shards.paths[shards.shard[r]]), shards.offsets[r], shards.lengths[r]) for r in segment.records]


def test_files_of_another_plan_leave_nothing_behind(plan: EpochPlan, tmp_path: Path) -> None:
    """Long and short runs, many and few, one after the other in the same files."""
    in_order = replace(plan, augment=AugmentSpec.evaluation())
    for segment in (Segment.whole(in_order), Segment.whole(plan), Segment(plan, 1, 2), Segment.whole(in_order)):
        assert records(segment, tmp_path) == planned(segment)
    assert len(run_starts(Segment.whole(plan))) > len(run_starts(Segment.whole(in_order)))


def test_a_write_in_parts_is_completed(plan: EpochPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[int, bytes], int] = os.write
    monkeypatch.setattr(index_files.os, "write", lambda descriptor, content: real(descriptor, content[:7]))
    segment = Segment.whole(plan)
    assert records(segment, tmp_path) == planned(segment)


def test_folders_are_used_again_and_removed(plan: EpochPlan) -> None:
    folders, segment = IndexFolders(), Segment(plan, 0, 1)
    first, second = folders.take(segment), folders.take(segment)
    assert first.name != second.name
    folders.give_back(first)
    assert folders.take(segment) is first
    folders.give_back(second)
    folders.close()
    assert not Path(second.name).exists()
    assert Path(first.name).exists()  # a pipeline still has it
    folders.give_back(first)
    assert not Path(first.name).exists()


def test_a_folder_without_room_is_not_used_again(plan: EpochPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    folders, segment = IndexFolders(), Segment(plan, 0, 1)
    first = folders.take(segment)
    folders.give_back(first)
    monkeypatch.setattr(index_files, "has_room", lambda folder, num_bytes: False)
    assert folders.take(segment).name != first.name
    assert not Path(first.name).exists()
