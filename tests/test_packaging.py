"""The wheel and sdist of `python -m build` are complete: they work outside of the checkout, with data files."""

import configparser
import subprocess
import sys
import tarfile
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

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
    assert {"kimagenet-train", "kimagenet-evaluate"} <= set(scripts)
    for target in scripts.values():
        module, function = target.split(":")
        with pytest.raises(SystemExit) as stopped:
            getattr(import_module(module), function)(["--help"])
        assert stopped.value.code == 0
        assert f"python -m {module}" in capsys.readouterr().out


def test_sdist_can_be_tested(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames()}
    for name in ("README.md", "LICENSE", "tests/test_packaging.py", "tools/build_shards.py", "bench/README.md"):
        assert name in names
