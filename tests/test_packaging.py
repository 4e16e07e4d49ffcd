"""The wheel and sdist of `python -m build` are complete: they work outside of the checkout, with data files."""

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

from pipelines.shards.index import index_path
from pipelines.shards.shard_set import ShardSet
from tests.helpers import faults
from tests.helpers.installed import Installed
from tests.helpers.programs import run_program

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist. Not isolated: tests have no network to download the backend."""
    output = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return output


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as by pip."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return site


def test_wheel_holds_both_packages_and_nothing_else(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {
        "kimagenet",
        "pipelines",
    }
    sources = [f"pipelines/loaders/dali/warp_colour.{suffix}" for suffix in ("cc", "h")]
    for name in ("kimagenet/py.typed", "pipelines/py.typed", *sources):
        assert (installed / name).is_file(), name


def test_wheel_runs_outside_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    environment = {"PATH": "", "PYTHONPATH": str(installed), "HOME": str(tmp_path)}
    result = run_program("outside_of_the_checkout", cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(installed))
    assert "resnet50" in result.stdout


def test_entry_points_are_command_lines(installed: Path, capsys: pytest.CaptureFixture) -> None:
    parser = configparser.ConfigParser()
    parser.read(next(installed.glob("*.dist-info")) / "entry_points.txt")
    scripts = dict(parser["console_scripts"])
    names = ("train", "evaluate", "build-shards", "check-shards", "build-index", "preview")
    assert {f"kimagenet-{name}" for name in names} <= set(scripts)
    for target in scripts.values():
        module, function = target.split(":")
        with pytest.raises(SystemExit) as stopped:
            getattr(import_module(module), function)(["--help"])
        assert stopped.value.code == 0
        name = module.rpartition(".")[2]
        in_clone = f"tools.{name}" if module.startswith("kimagenet.commands.") else module
        assert capsys.readouterr().out.startswith(f"usage: python -m {in_clone}")


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A virtual environment with the wheel and its commands."""
    return Installed.create(next(built.glob("*.whl")), tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def made(environment: Installed, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards that the wheel's command built, for reading only."""
    folder = tmp_path_factory.mktemp("made")
    flags = ["--source", str(images), "--output", str(folder / "shards"), "--workers=1"]
    done = environment.run(["kimagenet-build-shards", *flags], folder)
    assert done.returncode == 0, done.stderr
    return folder / "shards"


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    """A copy for a test to damage. Its name has to be quoted."""
    return shutil.copytree(made, tmp_path / "my shards")


def test_the_wheel_builds_checks_and_indexes(environment: Installed, shards: Path, tmp_path: Path) -> None:
    assert environment.run(["kimagenet-check-shards", str(shards)], tmp_path).returncode == 0
    (shards / "dataset.json").unlink()
    assert environment.run(["kimagenet-build-index", str(shards)], tmp_path).returncode == 0
    assert environment.run(["kimagenet-check-shards", str(shards)], tmp_path).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("path", ["", "/usr/bin:/bin"])
def test_the_wheel_prints_its_own_commands(environment: Installed, shards: Path, tmp_path: Path, path: str) -> None:
    """Each is run as it is printed, with and without the environment's folder in PATH."""
    opened = ShardSet.open(shards, "train")
    index_path(opened.paths[0]).unlink()
    done = environment.run(["kimagenet-check-shards", str(shards)], tmp_path, path)
    program = str(environment.bin / "kimagenet-build-index") if path else "kimagenet-build-index"
    assert f"run `{program} '{shards}'`" in done.stdout
    assert environment.run(printed(done.stdout), tmp_path, path).returncode == 0
    assert environment.run(["kimagenet-check-shards", str(shards)], tmp_path, path).returncode == 0
    (shards / "dataset.json").unlink()
    faults.break_example(opened, 0)
    done = environment.run(["kimagenet-build-index", str(shards)], tmp_path, path)
    assert (done.returncode, "kimagenet-check-shards" in done.stderr) == (2, True)
    quarantined = environment.run(printed(done.stderr), tmp_path, path)
    assert "quarantined records: 1 of train" in quarantined.stdout
    assert environment.run(["kimagenet-build-index", str(shards)], tmp_path, path).returncode == 0


def test_without_its_commands_the_wheel_prints_modules(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    python = tmp_path / "python"  # no commands lie beside it
    python.symlink_to(sys.executable)
    packages = f"{installed}{os.pathsep}{sysconfig.get_path('purelib')}"
    environment = {"PATH": "", "PYTHONPATH": packages, "HOME": str(tmp_path)}
    command = [str(python), "-m", "kimagenet.commands.check_shards", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "python -m kimagenet.commands.build_" in done.stdout + done.stderr


def printed(text: str) -> str:
    """The first command in a text."""
    return text.split("`")[1]


def test_sdist_can_be_tested(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    for name in ("README.md", "LICENSE", "tests/test_packaging.py", "tools/build_shards.py", "bench/README.md"):
        assert name in names
