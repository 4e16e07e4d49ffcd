"""Every command line with each kind of bad input: exit code 2, one line on stderr, nothing left behind."""

import re
import runpy
import sys
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from pipelines.shards.index import index_path
from tests.helpers import faults

ROOT = Path(__file__).parents[1]

# Commands that work unless something is wrong with {data}, {run}, {model}, {images} or {out}.
COMMANDS: dict[str, str] = {
    "bench": "memory --dataset-dir={data} --output={out}/result.json",
    "bench.soak": "--dataset-dir={data} --output={out}/result.json",
    "kimagenet.doctor": "--dataset-dir={data} --json={out}/doctor.json",
    "kimagenet.evaluate": "{run} --dataset-dir={data} --json={out}/result.json",
    "kimagenet.export": "{run} --output={out}/export --names-from={data}",
    "kimagenet.models": "",
    "kimagenet.predict": "{run} {images} --names-from={data}",
    "kimagenet.train": "demo --loader=tfdata --dataset-dir={data} --output={out}/run",
    "tools.build_index": "{data}",
    "tools.build_shards": "--source={images} --output={out}/shards --workers=1",
    "tools.check_shards": "{data} --json={out}/faults.json --workers=1",
    "tools.compare_uses": "{run}",
    "tools.export_shards": "{data} --output={out}/exported --format=webdataset --workers=1",
    "tools.gallery": "{data} --output={out}/gallery --loader tfdata",
    "tools.launch": "--workers=1 demo --dataset-dir={data} --output={out}/run",
    "tools.plot_runs": "{run} --output={out}/runs.png",
    "tools.preview": "{data} --output={out}/preview.png --loader tfdata",
    "tools.structure": "",
    "tools.try_applications": "{data} --output={out}/applications.md",
    "tools.try_models": "{data} --output={out}/models.md",
}
# The wheel has the commands of these names as well.
COMMANDS |= {
    f"kimagenet.commands.{name}": COMMANDS[f"tools.{name}"]
    for name in ("build_index", "build_shards", "check_shards", "export_shards", "preview")
}
# bench.optimizers uses argparse's messages, bench.estimate takes no arguments; kimagenet.doctor and `bench gpu` call
# the others.
FOREIGN = {
    *("bench.optimizers", "bench.estimate", "bench.gpu.case", "bench.storage.candidate"),
    *("kimagenet.diagnosis.libraries", "kimagenet.diagnosis.decoding"),
}


def found_commands() -> list[str]:
    """Every module of the project that `python -m` runs."""
    names = []
    for path in sorted(path for package in ("bench", "kimagenet", "tools") for path in (ROOT / package).rglob("*.py")):
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
            names.append(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    return names


def _no_folder(data: Path) -> Path:
    return data / "nowhere"


def _file(data: Path) -> Path:
    return data / "dataset.json"


def _empty(data: Path) -> Path:
    (data.parent / "empty").mkdir()
    return data.parent / "empty"


def _garbage(data: Path) -> Path:
    folder = data.parent / "garbage"
    folder.mkdir()
    for name in ("dataset.json", "run.json", "recipe.json", "log.jsonl", "train-00000-of-00001"):
        (folder / name).write_bytes(b"\x00\xff{[garbage\n" * 9)
    return folder


def _deep(data: Path) -> Path:
    folder = data.parent / "deep"
    folder.mkdir()
    for name in ("dataset.json", "run.json", "recipe.json"):
        (folder / name).write_bytes(b"[" * 100_000)
    return folder


def _escaping(data: Path) -> Path:
    text = (data / "dataset.json").read_text().replace("train-00000-of-00003", "../../etc/passwd")
    (data / "dataset.json").unlink()
    (data / "dataset.json").write_text(text)
    return data


def _stale(data: Path) -> Path:
    for path in data.glob("*-of-*[0-9]"):
        faults.truncate(path)
        index_path(path).unlink()
    return data


A_FILE = "a file for a folder"
BAD: dict[str, Callable[[Path], Path]] = {
    "no such folder": _no_folder,
    A_FILE: _file,
    "an empty folder": _empty,
    "garbage": _garbage,
    "deeply nested": _deep,
    "names that lead out": _escaping,
    "shards cut off": _stale,
}
CHECKS = ["tools.check_shards", "kimagenet.commands.check_shards"]
SHOWN_BY_CHECK = ["garbage", "names that lead out", "shards cut off"]
WRONG_FLAGS = ["--no-such-flag", "--no-such-flag=\n", "--output", "--workers=-3"]
# Without tools.launch: the process that it starts refuses the folder.
TAKES_FOLDERS = [name for name, line in COMMANDS.items() if re.search("{(data|run|images)}", line)]
TAKES_FOLDERS.remove("tools.launch")


@pytest.fixture
def places(tiny_dataset: Path, tmp_path: Path) -> dict[str, Path]:
    """Folders that a test may damage: shards, and one for output."""
    data = faults.copy_dataset(tiny_dataset, tmp_path / "shards")
    (tmp_path / "out").mkdir()
    return {"data": data, "run": data, "images": data, "out": tmp_path / "out"}


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """`python -m NAME …` within this process; its exit code."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # runpy's: the module has been imported before
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as leaving:
            return int(leaving.code or 0)
    return 0


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_refused(
    name: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> str:
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    capfd.readouterr()
    code = run(name, arguments, monkeypatch)
    error = capfd.readouterr().err
    assert code == 2, error
    assert re.fullmatch(r"error: [^\n]+\n", error)
    assert tree(tmp_path) == before
    return error


def test_every_command_is_in_the_table() -> None:
    assert set(found_commands()) <= {*COMMANDS, *FOREIGN}


def imports_tensorflow(name: str, bad: str) -> bool:
    """Whether a command imports TensorFlow before it looks at its folders."""
    return name.startswith("bench") or (name in ("kimagenet.export", "kimagenet.predict") and bad == A_FILE)


# check_shards reports some of these instead, see below.
CASES = [
    pytest.param(name, bad, marks=pytest.mark.slow) if imports_tensorflow(name, bad) else (name, bad)
    for name, bad in product(TAKES_FOLDERS, BAD)
    if (name, bad) not in product(CHECKS, SHOWN_BY_CHECK)
]


@pytest.mark.parametrize(("name", "bad"), CASES)
def test_bad_folders_get_one_line(
    name: str,
    bad: str,
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    spoiled = BAD[bad](places["data"])
    arguments = COMMANDS[name].format(**places | {"data": spoiled, "run": spoiled, "images": spoiled}).split()
    assert str(spoiled) in assert_refused(name, arguments, tmp_path, monkeypatch, capfd)


@pytest.mark.parametrize("bad", SHOWN_BY_CHECK)
def test_check_shards_lists_what_others_refuse(
    bad: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    spoiled = BAD[bad](places["data"])
    before = tree(tmp_path)
    assert run("tools.check_shards", [str(spoiled), "--workers=1"], monkeypatch) == 1
    printed = capfd.readouterr()
    assert not printed.err
    assert str(spoiled) in printed.out
    assert tree(tmp_path) == before


@pytest.mark.parametrize("flag", WRONG_FLAGS)
@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_flags_get_one_line(
    name: str,
    flag: str,
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    if name == "tools.launch":
        arguments = ["--workers=x" if flag == "--output" else flag]  # the flags after --workers go to train
    else:
        arguments = [*COMMANDS[name].format(**places).split(), flag]
    assert_refused(name, arguments, tmp_path, monkeypatch, capfd)
