"""The reports of a run: log files, the progress line, the picture of inputs."""

import io
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from kimagenet.runs.append_file import AppendFile
from kimagenet.runs.reporters import ProgressLine, duration, fitted
from kimagenet.runs.tensorboard import sheet
from kimagenet.training.results import Totals
from tests.helpers.faults import full_disk


def test_entries_wait_while_the_disk_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "new" / "a.log"
    file = AppendFile(path, b"header\n")
    file.append(b"first\n")
    with full_disk(15):
        file.append(b"second\n")
        assert path.read_bytes() == b"header\nfirst\n"
        file.append(b"third\n")
    assert path.read_bytes() == b"header\nfirst\n"
    file.append(b"fourth\n")
    assert path.read_bytes() == b"header\nfirst\nsecond\nthird\nfourth\n"
    assert [record.message for record in caplog.records] == [
        f"{path}: not written (File too large); its lines wait in memory, training continues"
    ]


def test_sheet_puts_images_side_by_side() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8) * 51
    rows = [np.concatenate(list(images[row : row + 2]), axis=1) for row in (0, 2)]
    last = np.concatenate([images[4], 0 * images[4]], axis=1)
    np.testing.assert_array_equal(sheet(tf.constant(images), columns=2, rows=9), np.concatenate([*rows, last]))
    np.testing.assert_array_equal(sheet(tf.constant(images), columns=2, rows=2), np.concatenate(rows))


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Loop:
    """The part of a loop that a progress line reads."""

    steps_per_epoch = 100
    num_skipped = 0
    totals = Totals()
    epoch_totals = property(lambda self: self.totals)

    class training:
        global_batch = 32
        replicas = 1
        shards = SimpleNamespace(num_classes=10)

    @staticmethod
    def is_log_step(step: int) -> bool:
        return (step + 1) % 10 == 0


def test_progress_line_shows_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    pages = {}
    for stream in (io.StringIO(), _Terminal()):
        loop = _Loop()
        line = ProgressLine(loop, epochs=3, stream=stream)
        line.on_epoch_begin(1)
        for step in range(20):
            # 16 images per second: 2 seconds a step, a quarter of them waiting
            loop.totals += Totals(steps=1, loss=2.0, top1=0.25, images=32, seconds=2.0, waited=0.5)
            time.sleep(0.02)
            line.on_train_batch_end(step, {"learning_rate": 0.1})
        line.on_epoch_end(1, {"loss": 2.0, "top1": 0.25, "val_loss": 1.5, "val_top1": 0.5, "val_top5": 1.0})
        pages[type(stream)] = stream.getvalue()
    plain, drawn = pages.values()
    # 2 of 3 epochs remain, and 20 of their 200 steps are done: 360 seconds
    expected = "epoch 2/3  20/100  6:00 left  loss 2.0000  top-1 25.0%  16 images/s  data wait 25%"
    assert plain.splitlines()[1] == expected
    assert len(plain.splitlines()) == 3
    assert "validation: loss 1.5000  top-1 50.00%  top-5 100.00%" in plain.splitlines()[2]
    assert "\r" not in plain
    assert drawn.count("\n") == 1
    assert drawn.count("\r") > 2
    time.sleep(0.11)
    line.on_train_batch_end(20, {"learning_rate": 0.1})
    for _ in range(2):
        line.close()
    assert stream.getvalue().startswith(drawn)
    assert stream.getvalue().count("\n") == 2
    assert stream.getvalue().endswith("wait 25%\x1b[K\n")
    assert [duration(seconds) for seconds in (7, 754, 5025)] == ["0:07", "12:34", "1:23:45"]


def test_a_narrow_terminal_shortens_words_before_numbers() -> None:
    line = "epoch 1/18  50/56  1:16 left  loss 2.0328  top-1 14.6%  406 images/s  data wait 2%"
    assert fitted(line, 100) == line
    assert fitted(line, 79) == "epoch 1/18  50/56  1:16 left  loss 2.0328  top-1 14.6%  406 img/s  data wait 2%"
    assert fitted(line, 75).endswith("406 img/s  wait 2%")
    assert fitted(line, 70).endswith(" wait 2%")
    assert len(fitted(line, 20)) == 20
