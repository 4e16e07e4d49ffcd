"""The file of a checkpoint: it is read as it was written, or refused."""

from pathlib import Path

import numpy as np
import pytest

from kimagenet.runs.checkpoint import Checkpoint, DamagedCheckpoint
from pipelines.system.files import remove_leftovers


def make_checkpoint() -> Checkpoint:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(3, 4)).astype(np.float32), np.array(7, np.int64), np.zeros(0, np.float32)]
    return Checkpoint([*arrays, np.array([1, 2], np.uint32)], {"epoch": 3, "nested": {"loss": 0.25}})


def test_reads_what_was_written(tmp_path: Path) -> None:
    written = make_checkpoint()
    written.write(tmp_path / "a.ckpt")
    read = Checkpoint.read(tmp_path / "a.ckpt")
    assert read.state == written.state
    for a, b in zip(written.arrays, read.arrays, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_every_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    make_checkpoint().write(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    cut_off = [whole[:end] for end in (0, 1, 31, 32, 33, *rng.integers(34, len(whole), 25))]
    flipped = [
        whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :]
        for at in rng.integers(0, len(whole), 70)
    ]
    for damaged in [*cut_off, *flipped, whole + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(DamagedCheckpoint, match="checksum"):
            Checkpoint.read(path)
    path.unlink()
    with pytest.raises(DamagedCheckpoint, match="No such file"):
        Checkpoint.read(path)


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    for name in (".step-000000001.ckpt.77.tmp", ".last.77.keras", "last.keras", "step-000000001.ckpt"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.keras", "step-000000001.ckpt"]
