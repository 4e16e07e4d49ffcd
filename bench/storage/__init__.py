"""What if the records are not in memory? Our loaders and the peers from slow storage, beside their rate from memory.

Each turn is a separate process. It loads its libraries first; then the pages of the shards are dropped (or read into
memory) and the turn begins. `cases` has the kinds of storage. Those that change the system need `--throttle`.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import peers
from bench.measurement import Measurement
from bench.settings import Settings
from bench.storage import disks, slow_fs
from bench.storage.cases import CASES, MEMORY, Case, Machine, possible_rate, why_not
from bench.storage.disks import Disk
from bench.storage.places import Places, files_of
from bench.storage.turns import Turn, TurnFailed, TurnSpec, run_turn
from bench.timing import rates, rotations
from pipelines.system.limits import memory_bytes
from pipelines.system.pages import drop_pages, share_in_memory

POSSIBLE = "of the possible rate"
WITHOUT = " without read-ahead"
Turns = dict[str, list[Turn]]  # of each candidate, one for each round


def measure(settings: Settings) -> Iterator[Measurement]:
    """For each augmentation, measures every candidate in every case, in rounds; a ratio compares turns of one round."""
    if problem := too_few_records(settings):
        print(f"storage is skipped: {problem}")
        return
    disk = disks.disk_of(settings.shards.paths[0].parent)
    cases = possible_cases(settings, disk)
    if any(case.limits_disk for case in cases) and disk is not None:
        before = disk.read_ahead.read_text().strip()
        print(
            f"read_ahead_kb of {disk.name} is {before} now; it is changed for each limited case and set back after it"
        )
    runnable = peers.working(settings)
    record_bytes = float(settings.shards.lengths.mean())
    for augment in settings.augments[: 1 if settings.short else None]:
        names = [name for name in settings.loaders if name != "synthetic"]
        names += [name + WITHOUT for name in names if settings.compare_read_ahead]
        names += [name for name in runnable if augment in peers.peer(name).AUGMENTS]
        turns = _run(settings, augment, names, cases, disk)
        for case in cases:
            stamp = settings.stamp(augment=augment, dtype="float32", case=case.title, records_from=case.records_from)
            yield from measurements(case, turns[case.name], turns.get(MEMORY.name, {}), record_bytes, stamp)


def too_few_records(settings: Settings) -> str:
    """Why the data set is too small: a turn may read each record once, as later ones come from memory. "" if not."""
    batches = max(settings.prefetch, 2 * settings.workers) + 8
    needed = batches * settings.batch_size
    if (found := len(settings.shards.usable)) >= needed:
        return ""
    return f"{found:,} records are less than {batches} batches; give a larger data set or smaller batches"


def possible_cases(settings: Settings, disk: Disk | None) -> list[Case]:
    """The cases that are asked for and can be measured here. Says why the others cannot."""
    files = files_of(settings.shards.paths)
    for path in files:
        drop_pages(path)
    machine = Machine(
        may_change=settings.may_change,
        shards_bytes=sum(path.stat().st_size for path in files),
        memory_bytes=memory_bytes(),
        kept=share_in_memory(files),
        no_view=slow_fs.why_no_view(),
        no_limit=disks.why_no_limit(disk),
    )
    found = []
    for case in (case for case in CASES if not settings.cases or case.name in settings.cases):
        if problem := why_not(case, machine):
            print(f"case {case.name} is not measured: {problem}")
        else:
            found.append(case)
    if disk is None:
        print("requests and bytes are counted in views only: the data set's file system has no disk")
    return found


def _run(
    settings: Settings, augment: str, names: Sequence[str], cases: Sequence[Case], disk: Disk | None
) -> dict[str, Turns]:
    """The turns of each candidate by case. A candidate that fails once is left out of that case, with its reason."""
    turns: dict[str, Turns] = {case.name: {name: [] for name in names} for case in cases}
    with tempfile.TemporaryDirectory(prefix="kimagenet-bench-") as scratch:
        places = Places(settings.shards, disk, Path(scratch))
        for number, order in enumerate(rotations(names, 1 if settings.short else settings.rounds), start=1):
            for case in cases:
                with places.opened(case) as place:
                    for name in (name for name in order if name in turns[case.name]):
                        counter = "" if place.counter is None else str(place.counter)
                        spec = spec_of(settings, name, augment, place.directory, counter)
                        line = f"{augment}, round {number}, {case.name}, {name}"
                        try:
                            turn = run_turn(spec, place.prepare)
                        except TurnFailed as failed:
                            print(f"{line}: left out, {failed}", flush=True)
                            del turns[case.name][name]
                            continue
                        turns[case.name][name].append(turn)
                        print(f"{line}: {turn.sample.rate:,.0f} images/s", flush=True)
    return turns


def spec_of(settings: Settings, name: str, augment: str, directory: Path, counter: str) -> TurnSpec:
    """What the process of one turn is told; the arguments are those of `TurnSpec`."""
    return TurnSpec(
        candidate=name.removesuffix(WITHOUT),
        directory=str(directory),
        split=settings.shards.split,
        augment=augment,
        batch_size=settings.batch_size,
        image_size=settings.image_size,
        workers=settings.workers,
        prefetch=settings.prefetch,
        device=settings.device,
        seconds=settings.seconds,
        counter=counter,
        read_ahead=0 if name.endswith(WITHOUT) else settings.read_ahead,
    )


def measurements(
    case: Case, turns: Turns, from_memory: Turns, record_bytes: float, stamp: dict[str, Any]
) -> Iterator[Measurement]:
    """The figures of one case.

    Args:
        case: where records came from.
        turns: of each candidate.
        from_memory: the same candidates' turns from memory, round by round; empty if they were not measured.
        record_bytes: mean size of a record.
        stamp: the settings of the measurements.
    """
    turns = {name: found for name, found in turns.items() if found}
    yield from rates("storage", {name: [turn.sample for turn in found] for name, found in turns.items()}, stamp)
    for name, found in turns.items():
        if case != MEMORY and len(from_memory.get(name, ())) == len(found):
            shares = tuple(
                turn.sample.rate / possible_rate(case, memory.sample.rate, record_bytes)
                for turn, memory in zip(found, from_memory[name], strict=True)
            )
            yield Measurement("storage", name, POSSIBLE, shares, stamp)
        if all(turn.num_bytes is not None for turn in found):
            kilobytes = tuple((turn.num_bytes or 0) / 1000 / turn.images for turn in found)
            yield Measurement("storage", name, "kB/image from storage", kilobytes, stamp)
            requests = tuple((turn.requests or 0) / turn.images for turn in found)
            yield Measurement("storage", name, "requests/image", requests, stamp)
        yield Measurement("storage", name, "s to the first batch", tuple(turn.first_batch for turn in found), stamp)
