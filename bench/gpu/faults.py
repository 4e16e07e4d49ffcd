"""Steps g and h: runs of `kimagenet.train` that meet corrupt records or are killed, and one to a known accuracy."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu.case import Settings
from bench.gpu.dali_alone import smi
from kimagenet import demo
from pipelines.building.build import build
from pipelines.building.options import BuildOptions
from pipelines.building.sources import open_source
from pipelines.shards.shard_set import ShardSet

Figures = Iterator[dict[str, Any]]
_PATIENCE = 120.0  # seconds that one command may take


def _no_gpu(settings: Settings) -> str:
    return "nvidia-smi finds no GPU" if settings.device == "gpu" and not smi(("name",)) else ""


def _dataset(folder: Path) -> Path:
    """96 generated images for training, 12 for validation."""
    demo.write_images(folder / "images", 8, 1, workers=1)
    build(open_source(folder / "images"), folder / "shards", BuildOptions(1, 1))
    return folder / "shards"


def _damage(dataset: Path, record: int) -> None:
    """Overwrites the head of a record's JPEG."""
    shards = ShardSet.open(dataset, "train")
    path, offset = shards.paths[shards.shard[record]], int(shards.offsets[record])
    with open(path, "r+b") as stream:
        stream.seek(offset)
        jpeg = stream.read(int(shards.lengths[record])).index(b"\xff\xd8\xff")
        stream.seek(offset + jpeg)
        stream.write(bytes(20))


def _command(settings: Settings, dataset: Path, run: Path, *more: str, epochs: int = 2) -> list[str]:
    place = ["--loader", "dali", "--strict-loader", "--data-device", settings.device]
    return [
        *(sys.executable, "-m", "kimagenet.train", "demo", "--dataset-dir", str(dataset), "--output", str(run)),
        *("--epochs", str(epochs), "--batch-size", "8", "--image-size", "64", "--log-steps", "1", *place, *more),
    ]


def _run(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_PATIENCE, check=False
    )
    return done.returncode, done.stdout


def corrupt(settings: Settings, *, policy: str) -> Figures:
    """A record that cannot be decoded: with "stop" the run ends and names it, with "skip" it continues without it."""
    if problem := _no_gpu(settings):
        yield {"skipped": problem}
        return
    with tempfile.TemporaryDirectory(prefix="kimagenet-bench-") as name:
        dataset, run = _dataset(Path(name)), Path(name) / "run"
        _damage(dataset, 17)
        code, output = _run(_command(settings, dataset, run, "--on-corrupt", policy))
        yield {"exit_code": code, "names_the_record": "record 17 of train" in output}
        listed = run / "corrupt.jsonl"
        lines = listed.read_text().splitlines() if listed.exists() else []
        yield {"listed": len(lines), "finished": (run / "final.keras").exists()}
        expected = {"stop": (1, 0, False), "skip": (0, 1, True)}[policy]
        is_right = (code, len(lines), (run / "final.keras").exists()) == expected
        yield {"is_right": is_right} | ({} if is_right else {"output": output[-1500:]})


def kill_and_resume(settings: Settings) -> Figures:
    """kill -9 after some steps, then the same command with --resume, to the end."""
    if problem := _no_gpu(settings):
        yield {"skipped": problem}
        return
    with tempfile.TemporaryDirectory(prefix="kimagenet-bench-") as name:
        dataset, run = _dataset(Path(name)), Path(name) / "run"
        command = _command(settings, dataset, run, "--checkpoint-steps", "5", epochs=3)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _PATIENCE
        while process.poll() is None and time.monotonic() < deadline and not _steps(run):
            time.sleep(0.02)
        killed_at = _steps(run)
        process.send_signal(signal.SIGKILL)
        yield {"killed_by": -process.wait(), "last_checkpoint": killed_at}
        code, output = _run([*command, "--resume"])
        at = next((line for line in output.splitlines() if line.startswith("resume")), "")
        is_right = code == 0 and bool(at) and (run / "final.keras").exists()
        yield {"exit_code": code, "resumed": at, "is_right": is_right} | (
            {} if is_right else {"output": output[-1500:]}
        )


def _steps(run: Path) -> int:
    """The step of the newest checkpoint, 0 if there is none."""
    numbers = [int(path.stem.partition("-")[2]) for path in run.glob("checkpoints/step-*.ckpt")]
    return max(numbers, default=0)


def accuracy(settings: Settings, *, dataset_dir: str = "", flags: tuple[str, ...] = ()) -> Figures:
    """A training with validation: top-1 and seconds. Without a data set and in a rehearsal, on generated images."""
    if problem := _no_gpu(settings):
        yield {"skipped": problem}
        return
    with tempfile.TemporaryDirectory(prefix="kimagenet-bench-") as name:
        run = Path(name) / "run"
        if settings.short or settings.device == "cpu":
            command = _command(settings, _dataset(Path(name)), run, epochs=1)
        else:
            dataset = dataset_dir or str(demo.ensure_demo())
            given = flags or ("demo",)
            place = ("--loader", "dali", "--strict-loader", "--data-device", settings.device)
            command = [sys.executable, "-m", "kimagenet.train", *given, "--dataset-dir", dataset]
            command += ["--output", str(run), *place]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
        yield {"exit_code": done.returncode, "seconds": round(time.perf_counter() - began, 1)}
        if done.returncode:
            yield {"output": (done.stdout + done.stderr)[-1500:]}
            return
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        best = max((line["val_top1"] for line in lines if "val_top1" in line), default=None)
        yield {"val_top1": best, "command": " ".join(command[1:4])}
