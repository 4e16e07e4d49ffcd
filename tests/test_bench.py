"""The arithmetic, files, tables and charts of bench, with made-up samples; the peers, on the tiny data set."""

import itertools
import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest

import bench.__main__
from bench import build, estimate, machine, original_builder, peers
from bench.__main__ import QUESTIONS, complete, make_parser
from bench.decode import find_jpegs
from bench.latency import stalls
from bench.measurement import Measurement, Result, select
from bench.reading import read_bytes, read_image
from bench.scaling import made_up_shards, plan_cost, thread_counts
from bench.settings import Settings, stretched
from bench.tables import tables
from bench.timing import Candidate, Sample, Turn, rates, ratios, rotations, run_interleaved, run_turns
from bench.training import predicted_seconds, predicted_wait
from pipelines import AugmentSpec, EpochPlan, ShardSet, UserError
from pipelines.building.shard_writer import write_shard
from pipelines.shards.index import scan
from pipelines.shards.jpeg import read_header
from pipelines.shards.records import ENCODED, decode_example


def sample(rate: float, cpu_ms: float = 1.0) -> Sample:
    return Sample(images=100, seconds=100 / rate, cpu_seconds=100 * cpu_ms / 1000)


def test_every_candidate_takes_every_place() -> None:
    orders = rotations(["a", "b", "c"], 6)
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    for place in range(3):
        assert sorted(order[place] for order in orders) == ["a", "a", "b", "b", "c", "c"]


def test_turns_are_interleaved() -> None:
    log: list[str] = []

    def turn(name: str) -> Turn:
        def run(seconds: float) -> Sample:
            log.append(name)
            return sample(1.0)

        return run

    samples = run_turns({name: turn(name) for name in "ab"}, rounds=3, seconds=0.0)
    assert log == ["a", "b", "b", "a", "a", "b"]
    assert [len(samples[name]) for name in "ab"] == [3, 3]


def test_ratios_compare_turns_of_the_same_round() -> None:
    # In the second round the machine is half as fast; the ratio stays the same.
    samples = {"limit": [sample(100, 2.0), sample(50, 4.0)], "ours": [sample(70, 3.0), sample(35, 6.0)]}
    by_rate, by_cpu = ratios("loaders", samples, "limit", {})
    assert by_rate.rounds == pytest.approx((0.7, 0.7))
    assert by_cpu.rounds == pytest.approx((2 / 3, 2 / 3))


def test_a_stream_is_counted_after_its_warm_up_and_then_closed() -> None:
    closed: list[str] = []

    def stream() -> Generator[int, None, None]:
        try:
            yield from itertools.repeat(8)
        finally:
            closed.append("stream")

    samples = run_interleaved([Candidate("only", stream)], rounds=2, seconds=0.01)["only"]
    assert closed == ["stream"]
    for turn in samples:
        assert turn.images == 8 * len(turn.gaps)
        assert turn.seconds == pytest.approx(sum(turn.gaps))
    with pytest.raises(ValueError, match="share a name"):
        run_interleaved([Candidate("twin", stream), Candidate("twin", stream)], 1, 0.0)


def test_training_is_as_fast_as_the_slower_of_loader_and_model() -> None:
    loader, step = sample(100, cpu_ms=15), sample(400, cpu_ms=3)
    assert predicted_seconds(loader, step, cores=None) == pytest.approx(1 / 100)
    assert predicted_wait(loader, step) == pytest.approx(0.75)
    assert predicted_wait(step, loader) == 0
    # On two shared cores 18 ms of CPU time take at least 9 ms, which is less than the loader's 10.
    assert predicted_seconds(loader, step, cores=2) == pytest.approx(0.010)
    assert predicted_seconds(loader, step, cores=1) == pytest.approx(0.018)


def test_stalls_are_gaps_over_three_medians() -> None:
    assert stalls(np.array([1.0] * 8 + [2.9, 3.1])) == pytest.approx(0.1)


def test_thread_counts() -> None:
    assert [thread_counts(n) for n in (1, 2, 6)] == [[1], [1, 2], [1, 2, 4, 6]]


@pytest.fixture(scope="module")
def shards(tiny_dataset: Path) -> ShardSet:
    return ShardSet.open(tiny_dataset, "train")


def test_a_longer_epoch_reads_every_record_equally_often(shards: ShardSet) -> None:
    longer = stretched(shards, 60_000)  # long enough for blocks
    plan = EpochPlan(longer, AugmentSpec.standard(), batch_size=1, image_size=8)
    counts = np.bincount(plan.records % shards.num_records)
    assert len(plan.records) >= 60_000
    assert set(counts.tolist()) == {len(plan.records) // shards.num_records}
    last = longer.num_records - 1
    assert longer.paths[longer.shard[last]] == shards.paths[-1]
    assert longer.offsets[last] == shards.offsets[-1]
    assert (np.diff(longer.shard) >= 0).all()


def test_the_limit_reads_the_jpegs_of_the_records(shards: ShardSet) -> None:
    places = find_jpegs(shards)
    assert len(places) == shards.num_records
    found = sorted(bytes(read_bytes(*place)) for place in places)
    assert found == sorted(bytes(read_image(shards, record)[0]) for record in range(shards.num_records))
    headers = [read_header(jpeg) for jpeg in found]
    assert sorted((h.height, h.width) for h in headers) == sorted(map(tuple, shards.sizes.tolist()))


@pytest.mark.slow
def test_the_original_builder_writes_the_same_images(shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    settings = Settings(shards, ())
    entries = build.extract_images(settings, tmp_path / "images")
    assert len(entries) == shards.num_records
    task, *_ = build.shard_tasks(entries, tmp_path / "built")
    found = []
    for write in (write_shard, original_builder.write_shard):
        sizes = write(task).sizes
        data = task.path.read_bytes()
        bodies = [memoryview(data)[offset + 12 : offset + size - 4] for offset, size in scan(task.path).pairs()]
        found.append((sizes, [bytes(decode_example(body)[ENCODED]) for body in bodies]))
    assert found[0] == found[1]
    assert len(found[0][0]) == len(task.entries) > len(entries)


def test_made_up_shards_are_consistent() -> None:
    made = made_up_shards(1000, 7)
    for number in range(7):
        mine = made.shard == number
        ends = made.offsets[mine] + made.lengths[mine]
        assert made.offsets[mine][0] == 0
        assert np.array_equal(made.offsets[mine][1:], ends[:-1])
    cost = plan_cost(200, 2)
    assert cost.order_seconds > 0
    assert cost.write_seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "augment"), [(name, augment) for name in peers.names() for augment in peers.peer(name).AUGMENTS]
)
def test_peers_keep_the_contract(name: str, augment: str, shards: ShardSet) -> None:
    peer = peers.peer(name)
    if problem := peer.unavailable():
        pytest.skip(problem)
    task = peers.Task(shards, augment, batch_size=16, image_size=32, workers=2)
    batches = peer.batches(task)
    seen = []
    for images, labels in itertools.islice(batches, 3):
        images, labels = np.asarray(images), np.asarray(labels)
        assert (images.dtype, images.shape) == (np.float32, (16, 32, 32, 3))
        assert (labels.dtype, labels.shape) == (np.int32, (16,))
        assert set(labels.tolist()) <= set(range(shards.num_classes))
        assert images.min() >= -1 - 1e-6
        assert images.max() <= 1 + 1e-6
        assert images.max() - images.min() > 0.5  # not a constant
        seen.append(images)
    assert not np.array_equal(seen[0], seen[1])


@pytest.mark.slow
def test_our_loaders_are_candidates(shards: ShardSet) -> None:
    settings = Settings(shards, ("tfdata",), batch_size=8, image_size=16, workers=1)
    stream = settings.candidate("tfdata", "tfdata", "evaluation").open()
    assert [next(stream) for _ in range(3)] == [8, 8, 8]
    stream.close()


def result(*measurements: Measurement) -> Result:
    return Result(
        command="python -m bench loaders",
        date=machine.date(),
        commit="abc",
        machine=machine.machine(),
        versions=machine.versions(),
        dataset={
            "name": "photos",
            "split": "train",
            "records": 10,
            "shards": 1,
            "mean_height": 400,
            "mean_width": 500,
            "mean_kilobytes": 110.0,
        },
        measurements=measurements,
    )


FULL = {"image_size": 224, "batch_size": 64, "workers": 2, "prefetch": 2, "device": "cpu", "augment": "full"}


def test_a_loaded_result_equals_the_saved_one(tmp_path: Path) -> None:
    saved = result(Measurement("loaders", "dali", "of decode limit", (0.5, 0.9, 0.6), FULL))
    saved.save(tmp_path / "r.json")
    loaded = Result.load(tmp_path / "r.json")
    assert loaded == saved
    assert loaded.measurements[0].median == 0.6
    assert loaded.measurements[0].spread == (0.5, 0.9)
    assert json.loads((tmp_path / "r.json").read_text())["measurements"][0]["median"] == 0.6


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 9}', '{"version": 1, "measurements": [{}]}'])
def test_other_files_are_refused_with_their_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match=r"r\.json"):
        Result.load(tmp_path / "r.json")


def test_select() -> None:
    wanted = Measurement("loaders", "dali", "images/s", (1.0,), FULL)
    other = Measurement("loaders", "dali", "images/s", (1.0,), FULL | {"augment": "standard"})
    assert select([wanted, other], "loaders", "images/s", augment="full") == [wanted]
    with pytest.raises(ValueError, match="at least one round"):
        Measurement("loaders", "dali", "images/s", ())


def test_the_command_line_is_stored_without_folders() -> None:
    line = machine.command(["loaders", "--dataset-dir", "/home/me/data/photos", "--rounds", "3"])
    assert line == "python -m bench loaders --dataset-dir photos --rounds 3"


def test_the_command_line_is_stored_with_the_default_turns(shards: ShardSet) -> None:
    settings = Settings(shards, (), rounds=5, seconds=6.0)
    assert complete(["loaders", "--rounds=3"], settings) == ["loaders", "--rounds=3", "--seconds", "6"]
    assert complete(["--seconds", "2"], settings) == ["--seconds", "2", "--rounds", "5"]


def test_a_table_has_a_row_for_each_name_and_a_column_for_each_unit() -> None:
    samples = {"decode limit": [sample(2000), sample(1900)], "dali": [sample(1500, 2.0), sample(1540, 2.0)]}
    share, _ = ratios("loaders", samples, "decode limit", FULL)
    memory = Measurement("loaders", "dali: memory", "MB", (12.5,), FULL)
    found = [*rates("loaders", samples, FULL), share, memory]
    assert tables(found).splitlines() == [
        "               images/s       min … max   CPU ms/image   of decode limit",
        "decode limit      1,950   1,900 … 2,000              1",
        "dali              1,520   1,500 … 1,540              2              0.78",
        "                 MB",
        "dali: memory   12.5",
    ]


@pytest.mark.slow
def test_bench_prints_a_table(
    tiny_dataset: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(settings: Settings) -> Iterator[Measurement]:
        for workers in (1, 2):
            yield from rates("latency", {"dali": [sample(1500)], "tfdata": [sample(1200)]}, {"workers": workers})

    monkeypatch.setattr("bench.latency.measure", measure)
    bench.__main__.main(make_parser().parse_args(["latency", f"--dataset-dir={tiny_dataset}", "--loader=tfdata"]))
    printed = capsys.readouterr().out
    assert re.findall(r"^workers (\d), records_from memory$", printed, re.MULTILINE) == ["1", "2"]
    assert printed.count("images/s") == 2
    assert len(re.findall(r"^dali +1,500 +1$", printed, re.MULTILINE)) == 2


RESULTS = sorted(Path(bench.__file__).with_name("results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_texts_in_charts_do_not_overlap_or_leave_the_figure(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    from bench.charts import charts

    drawn: dict[Text, None] = {}
    draw = Text.draw

    def record(text: Text, renderer: object) -> None:
        if text.get_visible() and text.get_text().strip():
            drawn[text] = None
        draw(text, renderer)

    monkeypatch.setattr(Text, "draw", record)
    for _, measurements in itertools.groupby(Result.load(path).measurements, key=lambda m: m.question):
        for _, figure in charts(list(measurements)):
            drawn.clear()
            FigureCanvasAgg(figure).draw()
            boxes = [(text.get_text(), text.get_window_extent()) for text in drawn]
            assert len(boxes) > 5
            edge = figure.bbox
            assert [name for name, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > edge.x1 or b.y1 > edge.y1] == []
            pairs = itertools.combinations(boxes, 2)
            assert [(name, other) for (name, b), (other, another) in pairs if b.overlaps(another)] == []


def test_the_report_is_one_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench.report import page

    names = ("dali", "tfdata", *peers.names())
    shares = [Measurement("peers", name, "of decode limit", (0.4, 0.5 + i / 10), FULL) for i, name in enumerate(names)]
    lost = Measurement("loaders", "dali: rotation", "of the rate lost", (0.02, 0.01), FULL | {"loader": "dali"})
    trained = [
        Measurement("training", f"dali → <b>{ending}", unit, rounds, FULL | {"loader": "dali"})
        for ending, unit, rounds in (
            ("", "images/s", (900.0, 1000.0)),
            (": predicted", "images/s", (1000.0, 1000.0)),
            (": data wait", "of the time", (0.4, 0.5)),
        )
    ]
    text = page([result(*shares, lost), result(*trained)], tmp_path)
    assert text.count("<svg") == 3
    assert "keras_imagenet, the original" in text
    assert "<b>" not in text
    assert not re.search(r"""(src|href)=["']?http|url\(http|<script|<link|@import""", text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loaders.png", "peers.png", "training.png"]


def test_the_estimate_for_gpus() -> None:
    photos = {"mean_height": 387, "mean_width": 469, "mean_kilobytes": 110.0}
    assert estimate.for_device("NVIDIA A100-SXM4-80GB", photos, 224, "float32", 1000) == (7000, "JPEG decoder")
    rate, resource = estimate.for_device("Tesla T4", photos, 224, "float32", 1000) or (0, "")
    assert (rate, resource) == (2000, "host's Huffman decoding")
    assert estimate.for_device("Voodoo 2", photos, 224, "float32", 1000) is None
    last = {
        dtype: estimate.stages(1e5, 1e5, 224, dtype, hybrid=False)[-1].memory_bytes for dtype in ("uint8", "float32")
    }
    assert last == {"uint8": 2 * 3 * 224**2, "float32": 8 * 3 * 224**2}


def test_the_help_lists_every_question(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        make_parser().parse_args(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {question}" in text for question in QUESTIONS)
