"""What a training is going to do: the order of precedence of flags, runs and defaults."""

import json
from pathlib import Path

import pytest

from kimagenet import models, train, train_settings
from kimagenet.runs.directory import RunDirectory
from kimagenet.training.cluster import Cluster
from pipelines import UserError
from pipelines.order.spec import ShuffleSpec


@pytest.mark.parametrize(
    ("content", "loader"),
    [
        ({"loader": {"name": "dali", "device": "gpu", "replicas": 2}}, "dali"),
        ({"loader": {"name": "a loader of another release"}}, "auto"),
        ({"loader": "tfdata on the cpu"}, "tfdata"),  # before run.json had fields for it
        ({"loader": "2 × dali on the gpu"}, "dali"),
        ({"loader": ""}, "auto"),
        ({}, "auto"),
        ({"loader": ["dali"]}, "auto"),
    ],
)
def test_a_run_continues_with_its_own_loader(tmp_path: Path, content: dict, loader: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"version": 1} | content))
    assert train_settings.loader_of(RunDirectory(tmp_path)) == loader


@pytest.fixture
def begun_run(tmp_path: Path) -> RunDirectory:
    """A run that began with other settings than the defaults."""
    run = RunDirectory(tmp_path / "begun")
    recipe = models.recipes()["demo"].replace(epochs=7, seed=3)
    run.begin(recipe, {"dataset_dir": "/its/shards", "loader": {"name": "tfdata", "device": "cpu", "replicas": 1}})
    return run


def settings_of(*arguments: str, cluster: Cluster | None = None) -> train_settings.Settings:
    return train_settings.resolve(train.make_parser().parse_args(arguments), cluster or Cluster())


def test_flags_come_before_the_run_and_the_run_before_the_defaults(begun_run: RunDirectory) -> None:
    settings = settings_of("--resume", f"--output={begun_run.path}", "--epochs=9")
    assert settings.is_resumed
    assert (settings.recipe.epochs, settings.recipe.seed, settings.recipe.model) == (9, 3, "demo")
    assert (settings.dataset_dir, settings.is_demo) == (Path("/its/shards"), False)
    assert settings.loader.name == "tfdata"
    flags = ("--dataset-dir=/other", "--loader=dali", "--recipe=resnet50", "--force-resume")
    settings = settings_of(f"--output={begun_run.path}", *flags)
    assert (settings.dataset_dir, settings.loader.name, settings.recipe) == (
        Path("/other"),
        "dali",
        models.recipes()["resnet50"],
    )
    assert settings.is_forced


def test_without_resume_a_run_that_has_begun_keeps_its_loader_alone(begun_run: RunDirectory) -> None:
    settings = settings_of("demo", "--dataset-dir=/other", f"--output={begun_run.path}")
    assert settings.is_resumed
    assert not settings.is_forced
    assert settings.loader.name == "tfdata"
    assert settings.recipe == models.recipes()["demo"]
    assert settings.note == "No --recipe: using the recipe demo."


def test_without_any_data_the_demo_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = settings_of()
    assert (settings.is_demo, settings.is_resumed) == (True, False)
    assert settings.dataset_dir == tmp_path / "cache" / "kimagenet" / "demo-v1"
    assert settings.recipe == models.recipes()["demo"]
    assert settings.run.path.parent == Path("runs")
    (tmp_path / "data" / "ILSVRC2012" / "tfrecords").mkdir(parents=True)
    settings = settings_of()
    assert not settings.is_demo
    assert settings.dataset_dir == tmp_path / "data" / "ILSVRC2012" / "tfrecords"
    assert settings.recipe.model == "googlenet_bn"


def test_several_workers_need_one_output(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="several workers need one --output"):
        settings_of("demo", cluster=Cluster(2, 1))
    assert settings_of("demo", f"--output={tmp_path / 'run'}", cluster=Cluster(2, 1)).cluster.rank == 1


def test_resolving_changes_neither_the_flags_nor_the_disk(begun_run: RunDirectory) -> None:
    flags = train.make_parser().parse_args([f"--output={begun_run.path}", "--force-resume"])
    before, files = vars(flags).copy(), sorted(begun_run.path.rglob("*"))
    train_settings.resolve(flags, Cluster())
    assert vars(flags) == before
    assert sorted(begun_run.path.rglob("*")) == files


@pytest.mark.parametrize(
    ("order", "flags", "expected"),
    [
        (None, (), (1, None, None)),  # before run.json had a field for it
        (None, ("--shuffle-window=record",), (1, 0, None)),
        ({"version": 1, "window": 0, "block_records": 32, "digest": "0"}, (), (1, 0, 32)),
        ({"version": 2, "window": 2304, "block_records": 36, "digest": "0"}, (), (2, 2304, 36)),
        ({"version": 2, "window": 2304, "block_records": 36}, ("--shuffle-window=99",), (2, 99, None)),
    ],
)
def test_a_run_keeps_its_order(
    begun_run: RunDirectory, order: dict | None, flags: tuple[str, ...], expected: tuple
) -> None:
    info = begun_run.read_info() | ({"order": order} if order else {})
    begun_run.info.write_text(json.dumps(info))
    shuffle = settings_of("--resume", f"--output={begun_run.path}", *flags).shuffle
    assert (shuffle.version, shuffle.window, shuffle.block_records) == expected


@pytest.mark.parametrize("order", [{"version": 3}, {"version": "2"}, {"version": 2, "window": 1.5}, {}, [], "2", None])
def test_an_order_of_a_later_release_is_refused(begun_run: RunDirectory, order: object) -> None:
    begun_run.info.write_text(json.dumps(begun_run.read_info() | {"order": order}))
    with pytest.raises(UserError, match=r"run\.json: it has an order of records that this release does not know"):
        settings_of("--resume", f"--output={begun_run.path}")


def test_a_new_run_has_the_window_of_its_recipe(begun_run: RunDirectory) -> None:
    assert settings_of("demo", "--dataset-dir=/other").shuffle == ShuffleSpec()
    for text, window in (("record", 0), ("4096", 4096)):
        settings = settings_of("demo", "--dataset-dir=/other", f"--shuffle-window={text}")
        assert settings.shuffle == ShuffleSpec(window=window)
        assert settings.recipe.shuffle_window == text
    with pytest.raises(UserError, match="has no window; begin another run"):
        settings_of("--resume", f"--output={begun_run.path}", "--shuffle-window=500")
    for wrong in ("", "0", "-1", "1.5", "all", "9" * 13, "٣"):
        with pytest.raises(UserError, match="shuffle_window must be auto, record or a number of records, not"):
            settings_of("demo", "--dataset-dir=/other", f"--shuffle-window={wrong}")
