"""check_shards finds every flipped bit and every record that loaders cannot read; loaders skip quarantined records."""

import gzip
import io
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from PIL import Image

from kimagenet.commands import build_index
from kimagenet.commands import check_shards as command
from pipelines import AugmentSpec, BatchSpec, EpochPlan, ShardSet, loaders, open_loader
from pipelines.building.check import check_shards
from pipelines.shards import records
from pipelines.shards.dataset import DATASET_FILE
from pipelines.shards.index import read_index, scan, write_index
from pipelines.shards.shard_set import write_sizes
from pipelines.system.reading import FileReader
from tests.helpers.data import TRAIN_RECORDS, jpeg, photo
from tests.helpers.flips import REGIONS, Flip, draw_flips

SHARD = "train-00001-of-00003"


@pytest.fixture
def dataset(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny_dataset, tmp_path / "shards")


def replace_record(folder: Path, number: int, data: bytes) -> None:
    """Replaces a record of SHARD by one whose image has the size of GOOD, and updates index, sizes and dataset.json."""
    path = folder / SHARD
    index, content = read_index(path), path.read_bytes()
    start, size = list(index.pairs())[number]
    path.write_bytes(content[:start] + records.frame(data) + content[start + size :])
    write_index(path, scan(path))
    told = json.loads((folder / DATASET_FILE).read_text())
    told["splits"]["train"]["shards"][1]["bytes"] = path.stat().st_size
    (folder / DATASET_FILE).write_text(json.dumps(told))
    sizes = np.load(folder / "train-sizes.npy")
    sizes[scan(folder / "train-00000-of-00003").num_records + number] = 20, 30
    write_sizes(folder / "train-sizes.npy", sizes)


def said(capsys: pytest.CaptureFixture[str], folder: Path, *flags: str) -> tuple[int, list[str]]:
    """Exit code and lines of the command."""
    code = command.main([str(folder), "--workers=1", *flags])
    return code, capsys.readouterr().out.splitlines()


def test_good_shards_have_no_fault(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_info(dataset, 1, crc32c=f"{google_crc32c.value((dataset / SHARD).read_bytes()):08x}")
    before = {path.name: path.read_bytes() for path in dataset.iterdir()}
    for flags in ((), ("--fast",), ("--quarantine",)):
        code, lines = said(capsys, dataset, *flags)
        assert code == 0
        note = ": images not decoded" if "--fast" in flags else ": no fault"
        assert lines == [f"{dataset}: 101 train records, 37 validation records{note}"]
    assert {path.name: path.read_bytes() for path in dataset.iterdir()} == before


def test_a_shard_is_read_once_and_ahead(tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first byte to its last. On a network file system the kernel reads what comes next meanwhile."""
    read, will_need = FileReader.read, FileReader.will_need
    reads: list[tuple[int, int]] = []
    ahead: list[int] = []

    def hinted(self: FileReader, end: int) -> None:
        will_need(self, end)
        ahead.append(end if self.path.name == SHARD else 0)

    def noted(self: FileReader, offset: int, length: int) -> bytes:
        data = read(self, offset, length)
        if self.path.name == SHARD and length > records.HEADER_BYTES:
            reads.append((offset, offset + length))
            assert max(ahead) >= offset + length + 4_000_000
        return data

    monkeypatch.setattr(FileReader, "read", noted)
    monkeypatch.setattr(FileReader, "will_need", hinted)
    assert check_shards(tiny_dataset).faults == ()
    assert [start for start, _ in reads] == [0, *(end for _, end in reads[:-1])]
    assert reads[-1][1] == (tiny_dataset / SHARD).stat().st_size


@pytest.mark.parametrize("region", REGIONS)
def test_every_flipped_bit_is_found(tiny_dataset: Path, tmp_path: Path, region: str) -> None:
    """File, record and byte are exact. The CRC finds a flip in an image, so decoding is not needed."""
    for number, flip in enumerate(draw_flips(tiny_dataset, [region] * 4, seed=REGIONS.index(region))):
        folder = shutil.copytree(tiny_dataset, tmp_path / str(number))
        flip.apply(folder)
        for decode in (True, False):
            faults = check_shards(folder, decode).faults
            assert [(f.file, f.record, f.offset) for f in faults] == [(flip.file, flip.record, flip.offset)]


@pytest.mark.slow
def test_after_quarantine_both_loaders_read_the_rest(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """24 flips and two more in headers of neighbours, then the remedy from the printed lines."""
    flips = draw_flips(dataset, [region for region in REGIONS for _ in range(4)], seed=7)
    path = dataset / "train-00002-of-00003"
    flips += [Flip.of_record(path, 5, "length", 3), Flip.of_record(path, 6, "length CRC", 3)]
    for flip in flips:
        flip.apply(dataset)
    damaged = {(flip.file, flip.record, flip.offset) for flip in flips}
    report = check_shards(dataset)
    assert {(fault.file, fault.record, fault.offset) for fault in report.faults} == damaged
    code, lines = said(capsys, dataset, "--quarantine", "--fast")
    assert code == 1
    assert sum("build_index" in line for line in lines) == sum(record is None for _, record, _ in damaged) > 0
    assert build_index.main([str(dataset), "--workers=1"]) == 0
    capsys.readouterr()
    code, lines = said(capsys, dataset)
    assert (code, len(lines)) == (0, 1)
    assert f"{sum(record is not None for _, record, _ in damaged)} already quarantined" in lines[0]
    read_through(dataset)


def read_through(folder: Path) -> None:
    """Reads every usable record of both splits with each loader."""
    import tensorflow as tf

    for split in ("train", "validation"):
        shards = ShardSet.open(folder, split)
        for name in loaders.names():
            batch = BatchSpec(batch_size=8, image_size=16)
            with open_loader(name, shards, batch, AugmentSpec.evaluation(), workers=1, device="cpu") as loader:
                weights = sum(float(tf.reduce_sum(weights)) for *_, weights in loader.batches(0))
            assert weights == len(shards.usable)


def test_a_quarantined_record_is_in_no_plan(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Flip.of_record(dataset / SHARD, 3, "image", 5).apply(dataset)
    said(capsys, dataset, "--quarantine")
    shards = ShardSet.open(dataset, "train")
    (record,) = set(range(TRAIN_RECORDS)) - set(shards.usable.tolist())
    assert (shards.shard[record], shards.offsets[record]) == (1, read_index(dataset / SHARD).offsets[3])
    assert record not in EpochPlan(shards, AugmentSpec.train(), batch_size=4, image_size=8).records
    assert said(capsys, dataset)[0] == 0


def cmyk() -> bytes:
    return jpeg(Image.new("CMYK", (30, 20), (10, 20, 30, 40)))


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, "PNG")
    return stream.getvalue()


def turned() -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


GOOD = jpeg(photo(np.random.default_rng(3), 0, 20, 30))
FEATURES: dict[str, records.FeatureValue] = {records.ENCODED: GOOD, records.LABEL: 1}

FAULTY: dict[str, tuple[Callable[[], bytes], str]] = {
    "no example": (lambda: b"\x07what", "wire type"),
    "no image": (lambda: records.encode_example({records.LABEL: 1}), "image/encoded is missing"),
    "no label": (lambda: records.encode_example({records.ENCODED: GOOD}), "image/class/label is missing"),
    "label below the base": (
        lambda: records.encode_example(FEATURES | {records.LABEL: 0}),
        "label 0 is outside 1 to 10",
    ),
    "label above": (lambda: records.encode_example(FEATURES | {records.LABEL: 11}), "label 11 is outside 1 to 10"),
    "wrong type": (
        lambda: records.encode_example(FEATURES | {records.FILENAME: 7}),
        "image/filename has the wrong type",
    ),
    "empty image": (lambda: records.encode_example(FEATURES | {records.ENCODED: b""}), "the file is empty"),
    "cut image": (lambda: records.encode_example(FEATURES | {records.ENCODED: GOOD[:-2]}), "JPEG without end marker"),
    "CMYK": (lambda: records.encode_example(FEATURES | {records.ENCODED: cmyk()}), "4-component JPEG"),
    "PNG": (lambda: records.encode_example(FEATURES | {records.ENCODED: png()}), "PNG"),
}


@pytest.mark.parametrize("kind", FAULTY)
def test_a_faulty_record_with_good_crcs(dataset: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    make, reason = FAULTY[kind]
    replace_record(dataset, 4, make())
    code, lines = said(capsys, dataset)
    assert code == 1
    offset = read_index(dataset / SHARD).offsets[4]
    assert lines[0].startswith(f"{dataset / SHARD}: record 4 at byte {offset}: ")
    assert reason in lines[0]
    assert "1 of them faulty" in lines[1]
    assert (said(capsys, dataset, "--fast")[0] == 0) == (kind in ("cut image", "CMYK"))


def test_features_with_wrong_sizes_are_counted_and_no_record_is_quarantined(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loaders read sizes from train-sizes.npy, which build_index makes from the images."""
    replace_record(dataset, 4, records.encode_example(FEATURES | {records.HEIGHT: 21, records.WIDTH: 30}))
    replace_record(dataset, 6, records.encode_example(FEATURES | {records.HEIGHT: 20, records.WIDTH: 31}))
    replace_record(dataset, 8, records.encode_example(FEATURES | {records.HEIGHT: 20, records.WIDTH: 30}))
    for flags in ([], ["--fast"], ["--quarantine"]):
        code, lines = said(capsys, dataset, *flags)
        assert code == 1
        assert lines[0].startswith(
            f"{dataset / SHARD}: record 4 says 21 × 30 pixels, but its image has 20 × 30 (2 such records); "
        )
        assert "1 fault of files" in lines[1]
        assert len(lines) == 2
    assert len(ShardSet.open(dataset, "train").usable) == TRAIN_RECORDS


def test_an_orientation_is_no_fault(dataset: Path) -> None:
    replace_record(dataset, 4, records.encode_example(FEATURES | {records.ENCODED: turned()}))
    assert check_shards(dataset).faults == ()


def change_info(folder: Path, shard: int, **changes: object) -> None:
    """Changes fields of a training shard in dataset.json."""
    told = json.loads((folder / DATASET_FILE).read_text())
    told["splits"]["train"]["shards"][shard] |= changes
    (folder / DATASET_FILE).write_text(json.dumps(told))


def wrong_sizes(folder: Path) -> None:
    sizes = np.load(folder / "train-sizes.npy")
    sizes[2:4] += 1
    write_sizes(folder / "train-sizes.npy", sizes)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "lost shard": (lambda folder: (folder / SHARD).unlink(), f"{SHARD}: No such file"),
    "empty shard": (lambda folder: (folder / SHARD).write_bytes(b""), f"{SHARD}: the shard is empty; copy or build"),
    "lost index": (lambda folder: (folder / f"{SHARD}.idx").unlink(), f"{SHARD}.idx: No such file or directory; run"),
    "other shard": (lambda folder: shutil.copy(folder / "train-00000-of-00003", folder / SHARD), "dataset.json says"),
    "checksum": (
        lambda folder: change_info(folder, 1, crc32c="01234567"),
        "dataset.json says checksum 01234567; copy or build",
    ),
    "count": (lambda folder: change_info(folder, 1, records=35), "dataset.json says 35 records"),
    "lost sizes": (lambda folder: (folder / "train-sizes.npy").unlink(), "train-sizes.npy: No such file"),
    "wrong sizes": (
        wrong_sizes,
        "train-sizes.npy: 2 sizes differ from the images in train-00000-of-00003: record 2",
    ),
    "no dataset.json": (
        lambda folder: (folder / DATASET_FILE).unlink(),
        "dataset.json: no such file; the folder has 5 TFRecord shards",
    ),
    "broken": (lambda folder: (folder / DATASET_FILE).write_text("{"), "dataset.json: the file: Invalid JSON"),
}


@pytest.mark.parametrize("damage", FILES)
def test_faults_of_files_are_named_with_their_remedy(
    dataset: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    spoil, reason = FILES[damage]
    spoil(dataset)
    code, lines = said(capsys, dataset, "--fast")
    assert code == 1
    (line,) = [line for line in lines[:-1] if reason in line]
    assert line.startswith(str(dataset))
    assert "build_index" in line or "build" in line or damage == "lost shard"


def test_a_shard_that_is_cut_off(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dataset / SHARD
    path.write_bytes(path.read_bytes()[:-10])
    lines = said(capsys, dataset, "--fast")[1]
    assert any("it is cut off" in line for line in lines)
    assert any("dataset.json says" in line and "copy or build it again" in line for line in lines)


@pytest.mark.slow
def test_shards_of_others_need_no_dataset_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shards like those of tensorflow-datasets: labels from 0, no sizes. Then the start of one record is damaged."""
    import tensorflow as tf

    folder = tmp_path / "others"
    folder.mkdir()
    path = folder / "train-00000-of-00001"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for label in range(3):
            writer.write(records.encode_example({records.ENCODED: GOOD, records.LABEL: label, "file_name": b"a.JPEG"}))
    assert said(capsys, folder)[1][-1] == f"{folder}: 3 train records: 2 faults of files"  # index and dataset.json
    assert build_index.main([str(folder), "--workers=1"]) == 0
    capsys.readouterr()
    assert said(capsys, folder) == (0, [f"{folder}: 3 train records: no fault"])

    flip = Flip.of_record(path, 1, "features", 0)
    (folder / DATASET_FILE).unlink()
    flip.apply(folder)
    assert build_index.main([str(folder), "--workers=1"]) == 2
    assert "check_shards" in capsys.readouterr().err
    assert said(capsys, folder, "--quarantine")[1][-1] == f"{folder}: quarantined records: 1 of train"
    shards = ShardSet.open(folder, "train")
    assert shards.usable.tolist() == [0, 2]
    assert [shards.read(record).label for record in shards.usable] == [0, 2]


def test_a_report_for_programs(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip = Flip.of_record(dataset / SHARD, 3, "data CRC", 0)
    flip.apply(dataset)
    assert said(capsys, dataset, "--json", str(tmp_path / "faults.json"), "--workers=2")[0] == 1
    report = json.loads((tmp_path / "faults.json").read_text())
    reason = "the CRC of its data is wrong"
    fault = {"file": SHARD, "reason": reason, "record": 3, "offset": flip.offset}
    assert report == {
        "version": 1,
        "directory": str(dataset),
        "records": {"train": TRAIN_RECORDS, "validation": 37},
        "images_decoded": True,
        "quarantined": 0,
        "faults": [fault],
    }


LEFTOVERS = {
    ".build": "a process that was stopped left it (2 kB); remove it, or run `python -m tools.build_index ",
    ".train-00001-of-00018.19103.tmp": "a process that was stopped left it (4 bytes); remove it, or run ",
    ".dataset.json.7.tmp": "a process that was stopped left it (4 bytes); remove it, or run ",
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_leftovers_are_named_and_removed_by_the_printed_command(
    dataset: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if name == ".build":
        (dataset / name / "source").mkdir(parents=True)
        (dataset / name / "source" / "a.tar").write_bytes(bytes(2000))
    else:
        (dataset / name).write_bytes(b"half")
    code, lines = said(capsys, dataset, "--fast")
    assert code == 1
    assert lines[0].startswith(f"{dataset / name}: {LEFTOVERS[name]}")
    assert build_index.main([str(dataset), "--workers=1"]) == 0
    assert not (dataset / name).exists()
    capsys.readouterr()
    assert said(capsys, dataset, "--fast")[0] == 0


NO_SHARDS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "GZIP": (gzip.compress, "not a shard but a GZIP file; write it again without compression"),
    "Git LFS": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
        "not a shard but a Git LFS pointer, not the file (`git lfs pull` downloads it); copy or build the shard again",
    ),
    "HTML": (lambda _: b"<!DOCTYPE html><title>404</title>", "not a shard but an HTML page"),
}


@pytest.mark.parametrize("kind", NO_SHARDS)
def test_files_that_are_no_shards_are_named(dataset: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    make, reason = NO_SHARDS[kind]
    (dataset / SHARD).write_bytes(make((dataset / SHARD).read_bytes()))
    lines = said(capsys, dataset, "--fast")[1]
    assert lines[0].startswith(f"{dataset / SHARD}: {reason}")
    assert build_index.main([str(dataset), "--workers=1"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {dataset / SHARD}: {reason}")


def test_a_fifo_in_the_place_of_a_shard_does_not_block(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / SHARD).unlink()
    os.mkfifo(dataset / SHARD)
    assert any(f"{SHARD}: not a regular file" in line for line in said(capsys, dataset, "--fast")[1])
    assert build_index.main([str(dataset), "--workers=1"]) == 2
    assert "not a regular file" in capsys.readouterr().err


def test_printed_commands_can_be_pasted(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(tiny_dataset, tmp_path / "a b'c $HOME")
    wrong_sizes(folder)
    (folder / ".train-sizes.npy.7.tmp").touch()
    lines = [line for line in said(capsys, folder, "--fast")[1] if "tools.build_index" in line]
    commands = [shlex.split(line.split("`")[1]) for line in lines]
    assert commands == [["python", "-m", "tools.build_index", str(folder)]] * 2


def test_wrong_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([str(tmp_path / "nowhere")], [str(tmp_path)], [str(tmp_path), "--json", str(tmp_path / "no" / "f")]):
        assert command.main(flags) == 2
        assert capsys.readouterr().err.count("\n") == 1
