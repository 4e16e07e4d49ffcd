"""What all tests share: no GPU, the fast subset, worker processes, and the data sets of the session."""

import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

# Before anything imports TensorFlow.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# As in the activated environment, where printed commands say `python`.
os.environ.pop("UV_RUN_RECURSION_DEPTH", None)  # the README's test command is `uv run`
os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))

import pytest

# A shell ignores SIGINT for what it starts in the background, nohup ignores SIGHUP; tests of signals need both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

from pipelines.system.processes import cpu_count
from tests.helpers.data import write_tiny_dataset
from tests.helpers.odd_run import OddRun, write_odd_run
from tests.helpers.selection import FAST_MODULES, HEAVY, default_workers


def is_fast(config: pytest.Config) -> bool:
    """Whether the command line has `-m fast`."""
    return config.option.markexpr == "fast"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Starts pytest-xdist's workers unless the command line says how many, or pytest-xdist is missing."""
    option = config.option
    is_worker = hasattr(config, "workerinput")
    if is_worker or not config.pluginmanager.hasplugin("xdist") or option.numprocesses is not None or option.tx:
        return
    is_watched = option.usepdb or option.collectonly or option.capture == "no" or getattr(option, "lf", False)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    workers = default_workers(option.file_or_dir, option.keyword, cpu_count(), memory)
    if workers and not is_watched:
        option.numprocesses, option.dist = workers, "worksteal"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m fast` imports no other modules: most of them import TensorFlow."""
    is_other = collection_path.name.startswith("test_") and collection_path.stem not in FAST_MODULES
    return True if is_fast(config) and is_other else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the fast tests."""
    for item in items:
        if item.path.stem in FAST_MODULES and not item.get_closest_marker("slow"):
            item.add_marker("fast")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """With `-m fast`, a module that imports TensorFlow is an error of the collection."""
    before = HEAVY & set(sys.modules)
    report = yield
    if is_fast(collector.config) and (found := (HEAVY & set(sys.modules)) - before):
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} imports {', '.join(sorted(found))}: it is not for `pytest -m fast`"
    return report


@pytest.fixture(scope="session")
def reported() -> set[str]:
    """The heavy modules that were imported before the first test, or that a fast test has already failed for."""
    return set(HEAVY & set(sys.modules))


@pytest.fixture(autouse=True)
def imports_nothing_heavy(request: pytest.FixtureRequest, reported: set[str]) -> Iterator[None]:
    """With `-m fast`, a test that imports TensorFlow fails."""
    yield
    if is_fast(request.config) and (found := (HEAVY & set(sys.modules)) - reported):
        reported |= found
        pytest.fail(f"a fast test imported {', '.join(sorted(found))}: mark it with pytest.mark.slow")


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of shards for reading only: see `tests.helpers.data.write_tiny_dataset`."""
    folder = write_tiny_dataset(tmp_path_factory.mktemp("tiny"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    yield folder
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after == before, "a test changed the shared data set"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images for reading only: see `tests.helpers.builds.write_images`."""
    from tests.helpers.builds import write_images

    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def built(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set built from `images`, for reading only."""
    from pipelines.building.build import build
    from pipelines.building.sources import open_source
    from tests.helpers.builds import OPTIONS

    output = tmp_path_factory.mktemp("built") / "shards"
    build(open_source(images), output, OPTIONS)
    return output


@pytest.fixture(scope="session")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> OddRun:
    """A run and the image files behind its shards, for reading only: see `tests.helpers.odd_run`."""
    return write_odd_run(tmp_path_factory.mktemp("odd"))
