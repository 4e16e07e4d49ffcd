"""`python -m bench gpu`: a short rehearsal on the CPU, and what becomes of cases that crash, hang or have no time."""

import inspect
import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import command, plan
from bench.gpu.case import Case, Outcome, Settings, outcome, run_case
from bench.gpu.record import Record, table
from kimagenet import cli
from pipelines.errors import UserError
from pipelines.loaders import dali

PROBLEM = dali.unavailable("cpu")
needs_dali = pytest.mark.skipif(PROBLEM is not None, reason=f"no DALI: {PROBLEM}")
SETTINGS = Settings("shards", device="cpu")


@needs_dali
def test_a_short_rehearsal_with_cases_that_end_badly(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "gpu.json"
    flags = ["--short", "--device=cpu", "--with-broken", f"--dataset-dir={tiny_dataset}", f"--output={output}"]
    broken = [Case("z", "crash", "case:crash", limit=60), Case("z", "hang", "case:hang", limit=2)]
    monkeypatch.setattr(plan, "broken", lambda: broken)
    assert cli.run(command.make_parser(), command.main, flags) == cli.EXIT_FAILED
    results = {entry["key"]: entry for entry in json.loads(output.read_text())["results"]}
    states = {key: entry["state"] for key, entry in results.items()}
    assert states == {"z crash": "crashed", "z hang": "hung", "a machine": "done", "b graph": "done", "c full": "done"}
    assert results["z crash"]["said"][0] == "was ended by SIGSEGV"
    assert results["z hang"]["said"][0] == "no end within 2 seconds"
    assert results["z crash"]["figures"] == results["z hang"]["figures"] == {"before": 1}  # what came before stays
    assert results["b graph"]["figures"]["images_per_s"] > 0
    pixels = results["c full"]["figures"]
    assert pixels["images"] == 32
    assert 0 < pixels["mean"] < 0.5
    assert (pixels["black"], pixels["other_labels"], pixels["is_right"]) == (0, 0, True)
    shown = capsys.readouterr().out
    assert "a  machine, driver, versions\n" in shown
    assert "\n   crash   crashed  was ended by SIGSEGV; before 1\n" in shown
    # The same command again repeats nothing.
    monkeypatch.setattr(command, "run_case", lambda *_: pytest.fail("a case was repeated"))
    before = output.read_bytes()
    assert cli.run(command.make_parser(), command.main, flags) == cli.EXIT_FAILED
    assert output.read_bytes() == before
    assert "z hang: in the file already, hung\n" in capsys.readouterr().out


def test_cases_that_had_no_time_are_run_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cases take half a minute of a clock that the test moves; the file is complete after each."""
    now, ran, path = [0.0], list[str](), tmp_path / "gpu.json"
    chosen = [Case(letter, "case", "case:hang") for letter in "abcd"]

    def run(case: Case, settings: Settings, left: float) -> Outcome:
        if path.exists():
            assert [entry["key"] for entry in json.loads(path.read_text())["results"]]
        ran.append(case.step)
        now[0] += min(30.0, left)
        return Outcome(case.key, {"b": "crashed"}.get(case.step, "done") if left >= 30 else "cut", min(30.0, left))

    monkeypatch.setattr(command, "run_case", run)
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    record = Record(path, {"device": "cpu"}, {})
    command.run_all(chosen, SETTINGS, record, 70)
    assert ran == ["a", "b", "c"]
    assert [found.state for found in record.outcomes.values()] == ["done", "crashed", "cut"]
    assert "d case: no time left\n" in capsys.readouterr().out
    shown = table(record.outcomes, [case.key for case in chosen])
    assert shown.endswith("d  loaders through TensorFlow\n   case not run")
    again = Record(path, {"device": "cpu"}, {})
    command.run_all(chosen, SETTINGS, again, 1000)
    assert ran == ["a", "b", "c", "c", "d"]
    command.run_all(chosen, SETTINGS, again, 1000, again=True)
    assert ran == ["a", "b", "c", "c", "d", "b"]


@pytest.mark.parametrize(
    ("code", "was_cut", "more", "lines", "state", "said"),
    [
        (0, False, [], ["noise"], "done", ()),
        (0, False, ['{"is_right": false}'], ["noise"], "failed", ("the result is not as it should be",)),
        (0, False, ['{"skipped": "no GPU"}'], ["noise"], "skipped", ("no GPU",)),
        (1, False, [], ["ValueError: x", ""], "failed", ("ended with exit code 1", "ValueError: x")),
        (-11, False, [], ["[INFO] [nvimgcodec] y"], "crashed", ("was ended by SIGSEGV",)),
        (None, False, [], [], "hung", ("no end within 7 seconds",)),
        (None, True, [], ["waiting"], "cut", ("no end within 7 seconds", "waiting")),
    ],
)
def test_how_a_process_ended(
    code: int | None, was_cut: bool, more: list[str], lines: list[str], state: str, said: tuple[str, ...]
) -> None:
    found = outcome(Case("b", "x", "f"), code, ['{"n": 1}', *more], lines, 7.0, was_cut)
    assert (found.state, found.said) == (state, said)
    found_figures = {name: value for name, value in found.figures.items() if name != "is_right"}
    assert found_figures == ({} if state == "skipped" else {"n": 1})


def test_warnings_of_the_decoder_are_counted() -> None:
    lines = ["[WARNING] [nvimgcodec] one", "[WARNING] [nvimgcodec] two"]
    found = outcome(Case("b", "x", "f"), 0, ["{}"], lines, 1.0, False)
    assert found.figures == {"decoder_warnings": 2, "first_warning": "[WARNING] [nvimgcodec] one"}


def test_a_hanging_case_ends_with_the_processes_that_it_started(tmp_path: Path) -> None:
    """Training runs are such processes."""
    started = tmp_path / "pid"
    code = f"import os, sys, time, pathlib; pathlib.Path({str(started)!r}).write_text(str(os.getpid())); time.sleep(99)"
    case = Case("g", "x", "faults:_run", {"command": [sys.executable, "-c", code]}, limit=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.gpu.case.sys.executable", _executable(tmp_path, code))
        found = run_case(case, SETTINGS, 100)
    assert found.state == "hung"
    assert _has_ended(int(started.read_text()))


def _has_ended(pid: int) -> bool:
    """Soon: a process that was killed is there until its parent, or init, has asked for its exit code."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def _executable(folder: Path, code: str) -> str:
    """A program that starts a second one and waits for it."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n"{sys.executable}" -c "{code}"\necho never\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_every_case_has_a_name_and_a_function_that_takes_its_arguments(device: str) -> None:
    """Those for a GPU are run by nobody here."""
    chosen = [*plan.cases(device, accuracy=("shards", "resnet50")), *plan.broken()]
    assert len({case.key for case in chosen}) == len(chosen)
    assert {case.step for case in chosen} == set("abcdefghz")
    for case in chosen:
        module, name = case.function.split(":")
        function = getattr(import_module(f"bench.gpu.{module}"), name)
        inspect.signature(function).bind(SETTINGS, **case.arguments)
    first = [case.step for case in chosen]
    assert first[0] == "a"
    assert first.index("b") < first.index("c") < first.index("d") < first.index("e")


WITHOUT_TENSORFLOW = """
import json, sys
sys.modules["tensorflow"] = None
from bench.gpu import case
case.main(json.loads(sys.argv[1]))
"""


@needs_dali
@pytest.mark.parametrize("number", range(3))
def test_steps_a_to_c_need_no_tensorflow(tiny_dataset: Path, number: int) -> None:
    chosen = plan.cases("cpu", short=True)[number]
    settings = {"dataset_dir": str(tiny_dataset), "device": "cpu", "seconds": 0.1, "short": True, "image_size": 48}
    work = {"function": chosen.function, "arguments": dict(chosen.arguments), "settings": settings}
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, json.dumps(work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert all(isinstance(json.loads(line), dict) for line in done.stdout.splitlines())
    assert done.stdout


def test_the_command_itself_imports_no_tensorflow() -> None:
    code = "import sys; import bench.gpu.command; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "not a result of `python -m bench gpu`; choose another file"),
        ('{"results": []}', "not a result of `python -m bench gpu`; choose another file"),
        (
            '{"version": 1, "about": {"device": "gpu"}, "results": []}',
            r"holds results about \{'device': 'gpu'\}, not about \{'device': 'cpu'\}; choose another file",
        ),
    ],
)
def test_a_file_about_something_else_is_not_continued(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(UserError, match=what):
        Record(path, {"device": "cpu"}, {})
    assert path.read_text() == text


def test_copies_from_the_device_to_the_host_are_counted() -> None:
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    from bench.gpu.through_tensorflow import device_to_host_bytes

    space = xplane_pb2.XSpace()
    for name in ("/device:GPU:0", "/host:CPU", "/device:GPU:1"):
        plane = space.planes.add(name=name)
        for number, text in enumerate(("MemcpyD2H", "MemcpyH2D", "a kernel"), 1):
            plane.event_metadata[number].id, plane.event_metadata[number].name = number, text
        plane.stat_metadata[1].name = "memcpy_details"
        plane.stat_metadata[2].name = "kind_src:device kind_dst:pageable size:24 dest:0 async:0"
        line = plane.lines.add()
        for number in (1, 2, 3):
            event = line.events.add(metadata_id=number)
            event.stats.add(metadata_id=1, str_value="kind_src:device kind_dst:pinned size:1000 dest:0 async:1")
        line.events.add(metadata_id=1).stats.add(metadata_id=1, ref_value=2)
    assert device_to_host_bytes(space.SerializeToString()) == 2 * (1000 + 24)
    assert device_to_host_bytes(b"") == 0


def test_the_table_says_what_was_not_run() -> None:
    outcomes: dict[str, Any] = {
        "b graph": Outcome("b graph", "done", 1.0, {"images_per_s": 12345.6, "black": 0, "seen": [1, 2]}),
        "b decode": Outcome("b decode", "failed", 1.0, {}, ("ended with exit code 1", "Traceback", "ValueError: x")),
    }
    assert table(outcomes, ["b graph", "b decode", "a machine"]).splitlines() == [
        "",
        "a  machine, driver, versions",
        "   machine not run",
        "",
        "b  DALI alone: decoder and graph",
        "   graph   done     images_per_s 12,346, black 0",
        "   decode  failed   ended with exit code 1; ValueError: x",
    ]


def test_decoding_on_the_host_is_said_in_the_cases_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"images_per_s": 900.0, "host_decoding": "images are decoded on the host, not on the GPU: 1.6 ms"}
    monkeypatch.setattr(command, "run_case", lambda case, *_: Outcome(case.key, "done", 6.0, figures))
    record = Record(tmp_path / "gpu.json", {}, {})
    command.run_all([Case("b", "graph", "f")], SETTINGS, record, 60)
    wanted = "b graph: done after 6 s: images are decoded on the host, not on the GPU: 1.6 ms\n"
    assert capsys.readouterr().out == wanted
