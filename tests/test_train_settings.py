"""What a training is going to do: the order of precedence of flags, runs and defaults."""

import json
from pathlib import Path

import pytest

from kimagenet import defaults, models, train, train_settings
from kimagenet.recipe import Recipe
from kimagenet.runs.directory import RunDirectory
from kimagenet.training.cluster import Cluster
from pipelines import UserError
from pipelines.order.spec import ShuffleSpec
from pipelines.shards.dataset import ClassInfo, DatasetInfo, ShardInfo, SplitInfo


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


def write_counts(folder: Path, records: int, quarantine: int = 0) -> Path:
    """A dataset.json alone: it says how many records there are."""
    folder.mkdir(parents=True)
    shard = ShardInfo(file="train-00000-of-00001", records=records, bytes=records)
    split = SplitInfo(shards=[shard], sizes="train-sizes.npy", quarantine=list(range(quarantine)))
    DatasetInfo(label_base=1, classes=[ClassInfo(name="a")], splits={"train": split}).save(folder)
    return folder


def test_without_a_recipe_the_data_decides(tmp_path: Path) -> None:
    data = write_counts(tmp_path / "data", 2_003, quarantine=3)
    settings = settings_of("mobilenet_v2", f"--dataset-dir={data}", "--image-size=96", "--epochs=30", "--lr=0.002")
    given = {"epochs": 30, "initial_lr": 0.002}
    choices = defaults.choose(given, 2_000, 96, is_trained=False)
    chosen = {name: value for choice in choices for name, value in choice.values.items()}
    assert settings.recipe == Recipe(model="mobilenet_v2", image_size=96, **given, **chosen)
    assert chosen["batch_size"] == 32
    title, *lines = settings.note.splitlines()
    assert title.startswith("No --recipe: chosen for 2,000 training records and new weights; --recipe original is for ")
    assert lines == defaults.lines(choices)
    assert settings_of("mobilenet_v2", f"--dataset-dir={data}", "--recipe=original").note == ""
    with pytest.raises(UserError, match="no such folder"):
        settings_of("mobilenet_v2", f"--dataset-dir={tmp_path / 'none'}")


@pytest.mark.parametrize("epsilon", [(), ("--epsilon=0.5",)])
@pytest.mark.parametrize(
    ("model", "optimizer"), [("googlenet_bn", "adam"), ("efficientnet_b0", "sgd"), ("osnet", "adam")]
)
def test_a_command_of_the_original_trains_as_there(
    model: str, optimizer: str, epsilon: tuple[str, ...], tmp_path: Path
) -> None:
    """Those of train_new.sh say seven choices. What they do not say is keras_imagenet's, whatever the data is."""
    data = write_counts(tmp_path / "data", 2_000)
    line = f"--dropout_rate 0.2 --optimizer {optimizer} --batch_size 32 --iter_size 1 --lr_sched exp --initial_lr 1e-2"
    flags = [*line.split(), "--final_lr", "1e-5", "--epochs", "60", *epsilon]
    recipe = settings_of(model, f"--dataset-dir={data}", *flags).recipe
    assert recipe.epsilon == (0.5 if epsilon else 0.1)
    assert (recipe.warmup_epochs, recipe.bn_momentum, recipe.crop_ratio) == (0.0, 0.0, 1.0)
    assert (recipe.decoupled_weight_decay, recipe.augment) == (0.0, "full")
    assert recipe.weight_decay == {"googlenet_bn": 1e-5, "efficientnet_b0": 3e-5, "osnet": 1e-5}[model]
    assert settings_of(model, f"--dataset-dir={data}", *line.split()).recipe.bn_momentum > 0  # not all of them


def test_trained_weights_keep_the_shape_of_their_run(begun_run: RunDirectory, tmp_path: Path) -> None:
    data = write_counts(tmp_path / "data", 1_281_167)
    before = Recipe.load(begun_run.recipe).replace(dropout_rate=0.3, image_size=80, ema=0.999, crop_ratio=0.9)
    begun_run.begin(before, {"dataset_dir": "/its/shards"})
    begun_run.final.touch()
    settings = settings_of(str(begun_run.path), f"--dataset-dir={data}")
    choices = defaults.choose({}, 1_281_167, 80, is_trained=True)
    chosen = {name: value for choice in choices for name, value in choice.values.items()}
    kept = {"dropout_rate": 0.3, "image_size": 80, "crop_ratio": 0.9}
    assert settings.recipe == Recipe(model=str(begun_run.final), **kept, **chosen)
    assert " and trained weights; " in settings.note
    again = settings_of(str(begun_run.path), f"--dataset-dir={data}", f"--recipe={begun_run.path}")
    assert again.recipe == before.replace(model=str(begun_run.final))
    original = settings_of(str(begun_run.path), f"--dataset-dir={data}", "--recipe=original").recipe
    assert original == Recipe(model=str(begun_run.final), image_size=80, crop_ratio=1.0)


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
    folder = write_counts(tmp_path / "data" / "ILSVRC2012" / "tfrecords", 1_281_167)
    settings = settings_of()
    assert not settings.is_demo
    assert settings.dataset_dir == folder
    assert settings.recipe == models.recipes()["googlenet_bn"]
    source = "keras_imagenet (train_new.sh; not re-run here)"
    many = "No --recipe: 1,281,167 training records are many"
    assert settings.note == f"{many}, so the recipe is googlenet_bn, from {source}."


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
