"""The plan, the turns and the arithmetic of `bench storage`, with fake machines, places and processes."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import storage
from bench.measurement import Measurement, records_from
from bench.settings import Settings
from bench.storage import places, turns
from bench.storage.cases import CASES, MEMORY, Case, Machine, possible_rate, why_not
from bench.storage.turns import Turn, TurnFailed, TurnSpec
from bench.tables import tables
from pipelines import ShardSet

BY_NAME = {case.name: case for case in CASES}
ABLE = Machine(may_change=True, shards_bytes=2 << 30, memory_bytes=24 << 30, kept=0.0)
SPEC = TurnSpec("dali", "tfrecords", "train", "full", 8, 32, 1, 2, "cpu", 0.1)


def turn(rate: float, **more: Any) -> Turn:
    return Turn(images=100, seconds=100 / rate, cpu_seconds=0.2, first_batch=0.5, **more)


@pytest.fixture
def shards(tiny_dataset: Path) -> ShardSet:
    return ShardSet.open(tiny_dataset, "train")


# ---- The plan of cases


def test_an_able_machine_measures_every_case() -> None:
    assert [why_not(case, ABLE) for case in CASES] == [""] * len(CASES)


@pytest.mark.parametrize(
    ("machine", "left_out", "reason"),
    [
        (replace(ABLE, may_change=False), {"network-2ms", "network-10ms", "cloud-volume", "hard-disk"}, "--throttle"),
        (replace(ABLE, no_view="no gcc"), {"network-2ms", "network-10ms"}, "no gcc"),
        (replace(ABLE, no_limit="only root"), {"cloud-volume", "hard-disk"}, "only root"),
        (replace(ABLE, kept=1.0), {"cold", "cloud-volume", "hard-disk"}, "100% of the shards' pages stay in memory"),
        (replace(ABLE, shards_bytes=9 << 30), {"network-2ms", "network-10ms"}, "twice the shards must fit"),
        (replace(ABLE, shards_bytes=20 << 30), {"memory", "network-2ms", "network-10ms"}, "must fit into 60 %"),
    ],
)
def test_a_case_that_cannot_be_measured_has_a_reason(machine: Machine, left_out: set[str], reason: str) -> None:
    found = {case.name: why_not(case, machine) for case in CASES}
    assert {name for name, why in found.items() if why} == left_out
    assert all(reason in why for why in found.values() if why)


def test_cases_left_out_are_named(
    shards: ShardSet, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "share_in_memory", lambda files: 0.0)
    settings = Settings(shards, (), cases=("memory", "cold", "hard-disk"))
    assert [case.name for case in storage.possible_cases(settings, None)] == ["memory", "cold"]
    printed = capsys.readouterr().out
    assert "case hard-disk is not measured: it changes the system while it runs; add --throttle, as root" in printed
    assert "network-2ms" not in printed  # not asked for
    assert "has no disk" in printed


def test_what_a_storage_makes_possible() -> None:
    cloud, hard = BY_NAME["cloud-volume"], BY_NAME["hard-disk"]
    assert possible_rate(MEMORY, 1000, 110e3) == 1000
    assert possible_rate(BY_NAME["network-10ms"], 1000, 110e3) == 1000
    assert possible_rate(cloud, 2000, 125e3) == 1000
    assert possible_rate(cloud, 900, 125e3) == 900
    assert possible_rate(hard, 9000, 150e3) == 1000
    assert {case.records_from for case in CASES if case != MEMORY} == {"storage"}


def test_small_data_sets_are_refused(shards: ShardSet) -> None:
    settings = Settings(shards, (), batch_size=1, workers=1)
    assert storage.too_few_records(settings) == ""
    assert "give a larger data set" in storage.too_few_records(settings.replace(batch_size=10_000))


# ---- Turns


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Replaces the process of a turn by a few lines of Python."""
    real = subprocess.Popen
    text = f"import json, os, sys, time\n{code}"
    monkeypatch.setattr(turns.subprocess, "Popen", lambda command, **rest: real([sys.executable, "-c", text], **rest))


def test_a_process_is_prepared_before_it_opens_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    result = '{"images": 64, "seconds": 2.0, "cpu_seconds": 1.0, "first_batch": 0.5, "num_bytes": 7, "requests": 1}'
    stand_in(
        monkeypatch, f"print('a note'); print('READY'); assert sys.stdin.readline(); print('RESULT ' + {result!r})"
    )
    prepared: list[int] = []
    found = turns.run_turn(SPEC, prepared.append)
    assert found == Turn(64, 2.0, 1.0, 0.5, 1, 7)
    assert found.sample.rate == 32
    assert len(prepared) == 1


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print('READY'); sys.stdin.readline(); sys.exit('no such loader')", "ended with exit code 1: no such loader"),
        ("os.abort()", "was ended by SIGABRT: no message"),
    ],
)
def test_a_process_that_fails_says_why(code: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, code)
    with pytest.raises(TurnFailed, match=why):
        turns.run_turn(SPEC, lambda process: None)


def test_an_interrupt_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "print('READY', flush=True); time.sleep(99)")
    ended: list[int] = []

    def interrupt(process: int) -> None:
        ended.append(process)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        turns.run_turn(SPEC, interrupt)
    assert not Path(f"/proc/{ended[0]}").exists()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, with fake places and processes; the peer nvidia_dali fails in a view."""
    done: list[str] = []

    @contextmanager
    def opened(self: object, case: Case) -> Iterator[Any]:
        done.append(f"open {case.name}")
        try:
            yield places.Place(Path("tfrecords"), (), None, case.in_memory, lambda process: None)
        finally:
            done.append(f"close {case.name}")

    def run_turn(spec: TurnSpec, before: Callable[[int], None]) -> Turn:
        before(1)
        done.append(spec.candidate)
        in_view = next(line for line in reversed(done) if line.startswith("open")) == "open network-2ms"
        if spec.candidate == "nvidia_dali" and in_view:
            raise TurnFailed("its process was ended")
        return turn(100.0 if in_view else 200.0)

    monkeypatch.setattr(storage.Places, "opened", opened)
    monkeypatch.setattr(storage, "run_turn", run_turn)
    monkeypatch.setattr(storage, "possible_cases", lambda settings, disk: [MEMORY, BY_NAME["network-2ms"]])
    monkeypatch.setattr(storage.peers, "working", lambda settings: ["nvidia_dali"])
    return done


def test_candidates_and_cases_take_turns(log: list[str], shards: ShardSet, capsys: pytest.CaptureFixture) -> None:
    settings = Settings(shards, ("dali", "synthetic"), augments=("full",), batch_size=1, rounds=2)
    found = list(storage.measure(settings))
    assert log == [
        *("open memory", "dali", "nvidia_dali", "close memory"),
        *("open network-2ms", "dali", "nvidia_dali", "close network-2ms"),
        *("open memory", "nvidia_dali", "dali", "close memory"),
        *("open network-2ms", "dali", "close network-2ms"),
    ]
    names = {(m.settings["case"], m.name) for m in found if m.unit == "images/s"}
    view = BY_NAME["network-2ms"].title
    assert names == {("memory", "dali"), ("memory", "nvidia_dali"), (view, "dali")}
    assert {m.settings["records_from"] for m in found if m.settings["case"] == view} == {"storage"}
    (share,) = [m for m in found if m.unit == storage.POSSIBLE]
    assert (share.name, share.rounds) == ("dali", pytest.approx((0.5, 0.5)))
    assert "network-2ms, nvidia_dali: left out, its process was ended" in capsys.readouterr().out


def test_loaders_can_be_compared_without_read_ahead(log: list[str], shards: ShardSet) -> None:
    settings = Settings(shards, ("tfdata",), augments=("full",), batch_size=1, rounds=1, compare_read_ahead=True)
    names = [m.name for m in storage.measure(settings) if m.unit == "images/s" and m.settings["case"] == "memory"]
    assert names == ["tfdata", "tfdata without read-ahead", "nvidia_dali"]
    ahead = [storage.spec_of(settings, name, "full", Path("d"), "") for name in names[:2]]
    assert [(spec.candidate, spec.read_ahead) for spec in ahead] == [("tfdata", settings.read_ahead), ("tfdata", 0)]
    assert settings.read_ahead > 0


@pytest.mark.slow
@pytest.mark.parametrize("candidate", ["tfdata", "tf_models"])
def test_a_process_measures_a_candidate(candidate: str, tiny_dataset: Path, tmp_path: Path) -> None:
    counter = tmp_path / ".stats"
    counter.write_text("1 requests 2 bytes\n")
    spec = replace(SPEC, candidate=candidate, directory=str(tiny_dataset), counter=str(counter))
    found = turns.run_turn(spec, lambda process: None)
    assert found.images % SPEC.batch_size == 0
    assert found.images > 0
    assert min(found.seconds, found.cpu_seconds, found.first_batch) > 0
    assert (found.requests, found.num_bytes) == (0, 0)


def test_the_table_of_a_case() -> None:
    cloud = BY_NAME["cloud-volume"]
    found = {"dali": [turn(1000, requests=220, num_bytes=24_000_000)], "tf_models": [turn(500)]}
    memory = {"dali": [turn(2000)], "tf_models": [turn(500)]}
    lines = tables(list(storage.measurements(cloud, found, memory, 125e3, {}))).splitlines()
    assert lines == [
        "                                      of the possible   kB/image from                    s to the first",
        "            images/s   CPU ms/image              rate         storage   requests/image            batch",
        "dali           1,000              2                 1             240              2.2              0.5",
        "tf_models        500              2                 1                                               0.5",
    ]


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(1.0, 1.0, "memory"), (0.0, 0.4, "storage"), (0.5, 1.0, "storage, in part"), (1.0, 0.2, "storage, in part")],
)
def test_where_records_were_read_from(before: float, after: float, text: str) -> None:
    assert records_from(before, after) == text
    assert records_from(None, after).startswith("unknown")


def test_a_chart_has_a_panel_for_each_kind_of_storage() -> None:
    pytest.importorskip("matplotlib")
    from bench.charts import charts

    found = [
        Measurement("storage", name, "images/s", (100.0, 120.0), {"augment": augment, "case": case.title})
        for augment in ("full", "standard")
        for case in CASES
        for name in ("dali", "tf_models")
    ]
    drawn = list(charts(found))
    assert [len(figure.axes) for _, figure in drawn] == [len(CASES)] * 2
