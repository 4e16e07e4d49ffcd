"""Records that become corrupt after the build are skipped or named. No other record is lost, repeated or changed."""

import json
import re
import signal
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from kimagenet import cli, train
from kimagenet.commands import build_index
from kimagenet.runs.directory import RunDirectory
from kimagenet.runs.reporters import JsonLines
from kimagenet.training.feed import Feed, open_feed
from kimagenet.training.recovery import MAX_TRIES, SkippedRecords, reason_of
from pipelines import AugmentSpec, BatchSpec, EpochPlan, ShardSet, UserError
from pipelines.errors import RunFailed
from pipelines.loaders.dali import native
from pipelines.order.spec import ShuffleSpec
from pipelines.shards import remedies
from pipelines.shards.corrupt import CorruptRecord, find_corrupt
from pipelines.shards.index import index_path
from tests.helpers import faults
from tests.helpers.data import TRAIN_RECORDS, VALIDATION_RECORDS
from tests.helpers.programs import run_program
from tests.test_loaders import READING, needs_dali
from tests.test_resume import at_step, epoch_lines, final_weights, send

BATCH_SIZE = 8
EPOCHS = 3


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    return faults.copy_dataset(tiny_dataset, tmp_path / "shards")


def open_split(dataset: Path, name: str, split: str = "train", **options) -> Feed:
    augment = AugmentSpec.evaluation() if split == "validation" else AugmentSpec.train()
    shards = ShardSet.open(dataset, split)
    batch = BatchSpec(BATCH_SIZE, 32)
    corrupt = SkippedRecords("skip", 1000)
    return open_feed(
        tf.distribute.get_strategy(), name, shards, batch, augment, workers=1, **{"corrupt": corrupt} | options
    )


def some(count: int, of: int, seed: int = 0) -> set[int]:
    return set(np.random.default_rng(seed).permutation(of)[:count].tolist())


def expected_order(feed: Feed, epoch: int, bad: set[int], known: set[int]) -> list[list[int]]:
    """The expected batches. Adds the bad records that are met to `known`.

    It does not use the plan's filter: it goes through the order of a plan without skipped records, one by one.
    """
    loader = feed.loaders[0]
    order = EpochPlan(feed.shards, loader.augment, 1, 32, epoch=epoch, shuffle=loader.shuffle).records.tolist()
    rest = [record for record in order if record not in known]
    batches: list[list[int]] = []
    while len(rest) >= BATCH_SIZE:
        batch, rest = rest[:BATCH_SIZE], rest[BATCH_SIZE:]
        if met := bad & set(batch):
            known |= met
            rest = [record for record in batch + rest if record not in met]
        else:
            batches.append(batch)
    return batches


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize(
    ("share", "kind", "shuffle"),
    [
        (0.01, "example", ShuffleSpec()),
        (0.1, "image head", ShuffleSpec(window=40, block_records=5)),
        (0.1, "image head", ShuffleSpec(1, block_records=5)),
    ],
    ids=str,
)
def test_skipping_loses_and_repeats_nothing(
    dataset: Path, name: str, share: float, kind: str, shuffle: ShuffleSpec
) -> None:
    """Compares pixels: the batches are those of the same records in the undamaged data set."""
    bad = some(round(share * TRAIN_RECORDS), TRAIN_RECORDS)
    known: set[int] = set()
    with open_split(dataset, name, shuffle=shuffle) as feed:
        good = {}  # what each record looks like in each epoch
        for epoch in range(EPOCHS):
            plan = EpochPlan(feed.shards, feed.loaders[0].augment, 1, 32, epoch=epoch, shuffle=shuffle)
            with open_split(dataset, name, shuffle=shuffle) as whole:
                whole.loaders[0].batch = BatchSpec(1, 32)
                for record, (image, label) in zip(plan.records.tolist(), whole.loaders[0].epoch(epoch), strict=True):
                    good[epoch, record] = image.numpy()[0], int(label[0])
        faults.corrupt(feed.shards, bad, kind)
        for epoch in range(EPOCHS):
            batches = expected_order(feed, epoch, bad, known)
            found = [(images.numpy(), labels.numpy()) for images, labels in feed.epoch(epoch)]
            assert len(found) == len(batches)
            for (images, labels), records in zip(found, batches, strict=True):
                assert labels.tolist() == [good[epoch, record][1] for record in records]
                np.testing.assert_array_equal(images, [good[epoch, record][0] for record in records])
            assert set(feed.corrupt.of("train")) == known
        assert known == bad  # with this seed, three epochs meet all of them
        assert feed.steps_per_epoch == TRAIN_RECORDS // BATCH_SIZE
    for line in feed.corrupt.lines:
        assert line["offset"] == feed.shards.offsets[line["record"]]
        assert line["shard"] == str(feed.shards.paths[feed.shards.shard[line["record"]]])


@pytest.mark.parametrize("name", READING)
def test_evaluation_counts_every_other_record_once(dataset: Path, name: str) -> None:
    bad = some(5, VALIDATION_RECORDS, 1) | {VALIDATION_RECORDS - 1}
    with open_split(dataset, name, "validation") as feed:
        faults.corrupt(feed.shards, bad, "image head")
        wanted = [feed.shards.read(i).label - 1 for i in range(VALIDATION_RECORDS) if i not in bad]
        for _ in range(2):
            batches = [(labels.numpy(), weights.numpy()) for _, labels, weights in feed.epoch(0)]
            labels, weights = (np.concatenate(parts) for parts in zip(*batches, strict=True))
            assert labels[weights == 1].tolist() == wanted
            assert set(feed.corrupt.of("validation")) == bad
            assert len(feed.corrupt) == len(bad)


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("kind", faults.RECORD_DAMAGES)
def test_stop_names_the_record(dataset: Path, name: str, kind: str) -> None:
    with open_split(dataset, name, corrupt=SkippedRecords()) as feed:
        plan = feed.loaders[0].plan(0)
        record = int(plan.records[3 * BATCH_SIZE + 5])
        faults.corrupt(feed.shards, [record], kind)
        batches = feed.epoch(0)
        for _ in range(3):
            next(batches)
        with pytest.raises(RunFailed) as caught:
            next(batches)
    message = str(caught.value)
    path = feed.shards.paths[feed.shards.shard[record]]
    place = f"{path}: the record at byte {feed.shards.offsets[record]} (record {record} of train): "
    assert message.startswith(place)
    quarantine = f"python -m tools.check_shards {dataset} --quarantine"
    assert message.endswith(f"; quarantine it with `{quarantine}`, or skip such records with on_corrupt=skip")
    assert (caught.value.path, caught.value.setting) == (str(path), "on_corrupt")
    assert "\n" not in message


@pytest.mark.parametrize("name", READING)
def test_when_every_record_is_corrupt_the_run_ends(dataset: Path, name: str) -> None:
    """Each is listed once, in the order of the plan. Those that are in no batch of the epoch are last."""
    with open_split(dataset, name) as feed:
        planned = feed.loaders[0].plan(0).records.tolist()
        faults.corrupt(feed.shards, range(TRAIN_RECORDS))
        with pytest.raises(RunFailed, match=f"0 records in the train split, without {TRAIN_RECORDS} corrupt ones, do"):
            list(feed.epoch(0))
        assert feed.corrupt.of("train") == [*planned, *sorted({*range(TRAIN_RECORDS)} - {*planned})]
    with open_split(dataset, name, corrupt=SkippedRecords("skip", 20)) as feed:
        with pytest.raises(
            RunFailed, match=r"\(and 7 more in its batch\); 16 were skipped before, and at most 20 may be"
        ):
            list(feed.epoch(0))
        assert len(feed.corrupt) == 16


@needs_dali
def test_good_records_that_do_not_fill_a_batch_are_not_listed(dataset: Path) -> None:
    with open_split(dataset, "dali") as feed:
        good = feed.loaders[0].plan(0).records[[3, 50]].tolist()
        faults.corrupt(feed.shards, {*range(TRAIN_RECORDS)} - {*good})
        with pytest.raises(RunFailed, match="2 records in the train split, without 99 corrupt ones, do not fill"):
            list(feed.epoch(0))
        assert sorted([*feed.corrupt.of("train"), *good]) == list(range(TRAIN_RECORDS))


class TwoReplicas:
    """The part of a strategy that a feed needs. It joins the two parts of a batch."""

    num_replicas_in_sync = 2

    def experimental_distribute_values_from_function(self, value_of):
        parts = [value_of(SimpleNamespace(replica_id_in_sync_group=rank)) for rank in range(2)]
        return tuple(tf.concat(part, 0) for part in zip(*parts, strict=True))


def test_the_loaders_of_all_replicas_skip(dataset: Path) -> None:
    """Two replicas read the same as one, whichever of them meets the corrupt records."""
    bad, batch = some(8, TRAIN_RECORDS, 3), BatchSpec(BATCH_SIZE, 32)
    shards = ShardSet.open(dataset, "train")
    faults.corrupt(shards, bad)
    with open_split(dataset, "tfdata") as one:
        expected = [labels.numpy().tolist() for epoch in range(2) for _, labels in one.epoch(epoch)]
    corrupt = SkippedRecords("skip")
    with open_feed(TwoReplicas(), "tfdata", shards, batch, AugmentSpec.train(), workers=1, corrupt=corrupt) as two:
        assert len(two.loaders) == 2
        assert [labels.numpy().tolist() for epoch in range(2) for _, labels in two.epoch(epoch)] == expected
        assert corrupt.lines == one.corrupt.lines


def test_several_processes_cannot_skip(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    shards = ShardSet.open(dataset, "train")
    arguments = TwoReplicas(), "tfdata", shards, BatchSpec(BATCH_SIZE, 32), AugmentSpec.train()
    with pytest.raises(UserError, match=r"several workers cannot skip corrupt records: .* on_corrupt=stop"):
        open_feed(*arguments, corrupt=SkippedRecords("skip"))
    open_feed(*arguments).close()


def test_an_error_without_a_corrupt_record_ends_the_run_after_some_tries(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    with open_split(dataset, "tfdata") as feed:

        def broken(*_) -> None:
            tries.append(1)
            raise tf.errors.InternalError(None, None, "the decoder failed\nand more")

        monkeypatch.setattr(feed, "_deal", broken)
        with pytest.raises(RunFailed, match=r"step 0 of the train split cannot be read: the decoder failed$"):
            next(feed.epoch(0))
        assert not feed.corrupt.lines
    assert len(tries) == 1 + MAX_TRIES


def test_bit_rot_that_decodes_is_found_by_the_checksum(dataset: Path) -> None:
    shards = ShardSet.open(dataset, "train")
    faults.flip_bit(shards.paths[0], int(shards.offsets[7]) + 12 + int(shards.lengths[7]) // 2, 3)
    assert [(found.record, found.reason) for found in find_corrupt(shards, [3, 7])] == [(7, "its checksum is wrong")]


def test_the_printed_command_can_be_pasted() -> None:
    found = [CorruptRecord("train", "/my data/train-00000-of-00001", 3, 40, "its image data is not an image")]
    for corrupt in (SkippedRecords(), SkippedRecords("skip", 0)):
        with pytest.raises(RunFailed, match=r"`python -m tools\.check_shards '/my data' --quarantine`"):
            corrupt.add(found, epoch=0, step=0)
        assert not corrupt.lines


def move_boundary(shards: ShardSet, shard: int, place: int, by: int) -> Path:
    """Moves the boundary after a record in an index, as a bit flip or an edit does. The index stays without gaps."""
    path = index_path(shards.paths[shard])
    table = [[int(number) for number in line.split()] for line in path.read_text().splitlines()]
    table[place][1] += by
    table[place + 1][0] += by
    table[place + 1][1] -= by
    path.unlink()
    path.write_text("".join(f"{offset} {size}\n" for offset, size in table))
    return path


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize(("shard", "place", "by"), [(0, 5, 7), (1, 0, -7), (2, 20, 1), (0, 10, -200)])
def test_an_index_that_does_not_fit_is_named_and_no_record_is_skipped(
    dataset: Path, name: str, policy: str, shard: int, place: int, by: int
) -> None:
    path = move_boundary(ShardSet.open(dataset, "train"), shard, place, by)
    with open_split(dataset, name, corrupt=SkippedRecords(policy)) as feed:
        with pytest.raises(RunFailed, match="the index does not fit its shard: the record at byte ") as caught:
            list(feed.epoch(0))
        assert not feed.corrupt.lines
    assert (caught.value.path, caught.value.remedy) == (path, f"run {remedies.build_index(dataset)}")
    assert build_index.main([str(dataset), "--workers=1"]) == 0
    with open_split(dataset, name) as feed:
        assert len(list(feed.epoch(0))) == feed.steps_per_epoch
        assert not feed.corrupt.lines


def test_a_record_with_a_damaged_header_or_footer_is_corrupt_and_its_index_is_right(dataset: Path) -> None:
    shards = ShardSet.open(dataset, "train")
    first, second = int(shards.offsets[4]), int(shards.offsets[8] + shards.lengths[8]) - 2
    faults.flip_bit(shards.paths[0], first)  # the length
    faults.flip_bit(shards.paths[0], second)  # the CRC of the data
    found = find_corrupt(shards, range(12))
    assert [(record.record, record.reason) for record in found] == [
        (4, "its checksum is wrong"),
        (8, "its checksum is wrong"),
    ]


def test_validation_records_have_the_epoch_of_the_run(dataset: Path, tmp_path: Path) -> None:
    """The record is damaged after the validation of the first epoch. The next one may have been read ahead."""
    run, shards = RunDirectory(tmp_path / "run"), ShardSet.open(dataset, "validation")
    arguments = [*RUN, "--loader=tfdata", "--epochs=3", f"--dataset-dir={dataset}", f"--output={run.path}"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(JsonLines, "on_train_batch_end", at_step(10, lambda: faults.corrupt(shards, [3])))
        assert train.main(arguments) == 0
    (line,) = (json.loads(line) for line in run.corrupt.read_text().splitlines())
    met = next(logged["epoch"] for logged in epoch_lines(run) if logged["skipped"])
    assert met > 0
    assert (line["split"], line["record"], line["epoch"], line["step"]) == ("validation", 3, met, 0)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(UserError, match="on_corrupt is one of stop, skip, not 'ignore'"):
        SkippedRecords("ignore")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n  the cause\nand more", "the cause"),
        (
            "Error in CPU operator `x`:\n  File y\nencountered:\n\nError at z: no image\nStacktrace",
            "Error at z: no image",
        ),
        ("it ends with\nencountered:", "it ends with"),
        ("", "ValueError"),
    ],
)
def test_the_reason_is_one_line_of_a_library_s_page(text: str, reason: str) -> None:
    assert reason_of(ValueError(text)) == reason


RUN = ["demo", "--image-size=32", "--batch-size=12", "--epochs=2", "--workers=1", "--ema=0.9", "--checkpoint-steps=3"]
RUN += ["--on-corrupt=skip", "--log-steps=4"]


@pytest.mark.parametrize("name", READING)
def test_a_run_that_skips_is_resumed_exactly(
    dataset: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for split, bad in (("train", some(5, TRAIN_RECORDS)), ("validation", {3, 30})):
        faults.corrupt(ShardSet.open(dataset, split), bad)
    whole, parts = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parts")
    arguments = [*RUN, f"--loader={name}", f"--dataset-dir={dataset}"]
    assert train.main([*arguments, f"--output={whole.path}"]) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in whole.corrupt.read_text().splitlines()]
    assert {line["record"] for line in lines if line["split"] == "validation"} == {3, 30}
    assert f"{len(lines)} corrupt records were skipped, see {whole.corrupt}" in printed.out
    assert [line["skipped"] for line in epoch_lines(whole)][-1] == len(lines)
    assert printed.err.count("skipped: ") == len(lines)
    with monkeypatch.context() as patched:
        step = 8 * lines[0]["epoch"] + lines[0]["step"] + 1
        patched.setattr(JsonLines, "on_train_batch_end", at_step(step, lambda: send(signal.SIGTERM)))
        assert train.main([*arguments, f"--output={parts.path}"]) == cli.EXIT_RESUME
    assert parts.corrupt.read_text().splitlines()
    assert train.main(["--resume", f"--output={parts.path}", "--on-corrupt=skip", f"--loader={name}"]) == 0
    assert parts.corrupt.read_bytes() == whole.corrupt.read_bytes()
    assert epoch_lines(parts) == epoch_lines(whole)
    for a, b in zip(final_weights(whole), final_weights(parts), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
def test_a_run_that_stops_names_the_first_record_and_leaves_a_checkpoint(
    dataset: Path, name: str, share: float, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shards, run = ShardSet.open(dataset, "train"), RunDirectory(tmp_path / "run")
    bad = some(round(share * TRAIN_RECORDS), TRAIN_RECORDS)
    faults.corrupt(shards, bad)
    arguments = [*RUN, f"--loader={name}", f"--dataset-dir={dataset}", f"--output={run.path}", "--on-corrupt=stop"]
    assert train.main(arguments) == cli.EXIT_FAILED
    (error,) = re.findall("^error: .*$", capsys.readouterr().err, re.MULTILINE)
    plans = [EpochPlan(shards, AugmentSpec.train(), 12, 32, epoch=epoch).records.tolist() for epoch in range(2)]
    position, record = next(found for found in enumerate(chain(*plans)) if found[1] in bad)
    place = f"{shards.paths[shards.shard[record]]}: the record at byte {shards.offsets[record]} (record {record} of"
    assert error.startswith(f"error: {place} train): its image data is not an image")
    quarantine = f"python -m tools.check_shards {dataset} --quarantine"
    assert error.endswith(
        f"; quarantine it with `{quarantine}`, or skip such records with on_corrupt=skip (--on-corrupt)"
    )
    assert int(run.find_checkpoints()[0].stem.removeprefix("step-")) == position // 12
    if share == 0.1:
        assert train.main([*arguments[:-1], "--on-corrupt=skip"]) == 0
        assert keras.models.load_model(run.final)


@needs_dali
def test_bytes_that_are_no_image_do_not_end_the_process(tmp_path: Path) -> None:
    """DALI 2.4 had a segmentation fault, which only appears with large images and batches."""
    result = run_program("corrupt_large_batches", tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "whole" in result.stdout
    assert "written to std::cout\n" in result.stdout
    if native.available():  # it leaves out the page that DALI's plugin writes for each error
        assert "DALI_ERROR" not in result.stdout
