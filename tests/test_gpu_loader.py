"""What the dali loader does on a GPU besides its graph, checked without one: memory, devices, decoding on the host."""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from kimagenet.decoder_flags import decoder_options
from kimagenet.train import describe_run
from kimagenet.train_flags import make_parser
from pipelines import AugmentSpec, BatchSpec, ShardSet, UserError, open_loader
from pipelines.decoding import DecoderOptions
from pipelines.loader import Loader, LoaderOptions
from pipelines.loaders import dali
from pipelines.loaders.dali.host_time import HostCheck, dali_cpu_seconds, judge_host_decoding
from pipelines.stream import Segment

PROBLEM = dali.unavailable("cpu")
needs_dali = pytest.mark.skipif(PROBLEM is not None, reason=f"no DALI: {PROBLEM}")
PIXELS = 469 * 387  # ImageNet's mean


def opened(dataset: Path, device: str = "gpu") -> Loader:
    """A loader that believes it is on a device. Its pipelines cannot run on a GPU that is not there."""
    from pipelines.loaders.dali.loader import DaliLoader

    options = LoaderOptions(1, device=device)
    arguments = (ShardSet.open(dataset, "train"), BatchSpec(8, 32), AugmentSpec.train(), 0, 0, 1, options)
    return DaliLoader(*arguments)


@needs_dali
@pytest.mark.parametrize(("device", "calls"), [("gpu", 1), ("cpu", 0)])
def test_a_loader_that_closes_gives_gpu_memory_back(
    tiny_dataset: Path, device: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nvidia.dali import backend

    called: list[str] = []
    monkeypatch.setattr(Loader, "close", lambda self: called.append("pipelines are closed"))
    monkeypatch.setattr(backend, "ReleaseUnusedMemory", lambda: called.append("released"))
    opened(tiny_dataset, device).close()
    assert called == ["pipelines are closed"] + ["released"] * calls
    monkeypatch.delattr(backend, "ReleaseUnusedMemory")  # an older DALI
    opened(tiny_dataset, device).close()


@needs_dali
def test_the_device_of_a_divided_gpu() -> None:
    from pipelines.loaders.dali.loader import physical_gpu

    assert [physical_gpu(logical, [1, 1, 1]) for logical in range(3)] == [0, 1, 2]
    assert [physical_gpu(logical, [2]) for logical in range(2)] == [0, 0]  # two TensorFlow devices on one GPU
    assert [physical_gpu(logical, [1, 3, 1]) for logical in range(5)] == [0, 1, 1, 1, 2]
    assert [physical_gpu(logical, [0, 1, 0, 1]) for logical in range(2)] == [1, 3]  # two are hidden from TensorFlow
    with pytest.raises(ValueError, match="TensorFlow has no such GPU; it has 2"):
        physical_gpu(2, [1, 1])


@needs_dali
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_graph_gets_the_decoders_settings(tiny_dataset: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `open_loader`, to the point where DALI and TensorFlow take over."""
    from nvidia.dali.plugin import tf as dali_tf

    from pipelines.loaders.dali import loader as module

    seen: dict[str, Any] = {}

    def build_graph(files: Any, *arguments: Any, **options: Any) -> str:
        seen.update(options, whole_images=files.whole_images, options=arguments[-1])
        return "graph"

    monkeypatch.setattr(module, "build_graph", build_graph)
    monkeypatch.setattr(module, "_parts_of_gpus", lambda: [2])
    monkeypatch.setattr(module.tf, "device", lambda name: nullcontext())
    monkeypatch.setattr(dali_tf, "DALIDataset", lambda **options: seen.update(dataset=options) or _Stub())
    monkeypatch.setattr("pipelines.loaders.dali.unavailable", lambda device: None)
    monkeypatch.setattr(module, "_finish", lambda spec: lambda dataset, steps: dataset)
    monkeypatch.setattr(module, "_release_gpu_memory", lambda: None)
    decoder = DecoderOptions(hw_decoder_load=0.8, preallocate_percentile=100)
    shards = ShardSet.open(tiny_dataset, "train")
    batch, augment = BatchSpec(8, 32), AugmentSpec.train()
    with open_loader("dali", shards, batch, augment, workers=1, device=device, gpu=1, decoder=decoder) as loader:
        loader._pipeline(Segment.whole(loader.plan(0))).dataset()  # type: ignore[attr-defined]
    on_gpu = device == "gpu"
    assert seen["options"].decoder == decoder
    assert seen["whole_images"] is on_gpu
    assert seen["preallocate"] == (tuple(shards.sizes.max(axis=0).tolist()) if on_gpu else (0, 0))
    assert seen["dataset"]["device_id"] == (0 if on_gpu else None)
    assert not (on_gpu and seen["native"])


class _Stub:
    element_spec = ()


@pytest.mark.parametrize(
    ("cpu_ms", "found"),
    [
        (0.05, ""),  # reading
        (0.4, ""),  # a third of the images decoded by CUDA, with the host's Huffman decoding
        (0.8, "a part of the GPU's decoding runs on the host: each image takes 0.80 ms of CPU time"),
        (1.6, "images are decoded on the host, not on the GPU: each image takes 1.60 ms of CPU time"),
    ],
)
def test_cpu_time_far_above_reading_is_decoding_on_the_host(cpu_ms: float, found: str) -> None:
    judged = judge_host_decoding(cpu_ms, PIXELS)
    assert judged.startswith(found)
    assert bool(judged) == bool(found)
    assert "\n" not in judged


def test_large_images_may_take_more() -> None:
    assert judge_host_decoding(0.8, PIXELS)
    assert not judge_host_decoding(0.8, 4 * PIXELS)


def test_dalis_threads_are_told_from_others(tmp_path: Path) -> None:
    stat = " S 1 1 1 0 -1 4194368 100 0 0 0 {} {} 0 0 20 0 12 0 100 0 0"
    for number, name in enumerate(("[DALI][TP0]Exec", "python) (x", "[DALI] Executor", "tf_Compute")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stat").write_text(f"{number} ({name})" + stat.format(150, 50))
    (tmp_path / "9").mkdir()  # a thread that has ended
    assert dali_cpu_seconds(tmp_path) == pytest.approx(4.0)
    assert dali_cpu_seconds(tmp_path / "no such system") == 0.0


@pytest.mark.parametrize(("cpu_ms", "warnings"), [(0.1, 0), (1.5, 1)])
def test_the_check_warns_once_after_the_first_images(cpu_ms: float, warnings: int) -> None:
    images = 0
    check = HostCheck(np.full((10, 2), 400), lambda: cpu_ms * images / 1000)
    found = []
    for _ in range(200):
        images += 100
        if text := check.count(100):
            found.append((images, text))
    assert [count for count, _ in found] == [HostCheck.WARM_UP + HostCheck.MEASURED] * warnings


@needs_dali
def test_a_run_that_starts_says_that_images_are_decoded_on_the_host(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With batches that cost what decoding on the host costs."""
    closed = []

    def batches(self: Loader, epoch: int, start_step: int = 0) -> Iterator[int]:
        try:
            yield from range(2000)
        finally:
            closed.append(epoch)

    monkeypatch.setattr(Loader, "batches", batches)
    loader = opened(tiny_dataset)
    assert loader._host_check is not None  # type: ignore[attr-defined]
    count = iter(range(10**6))
    loader._host_check._clock = lambda: next(count) * 1000.0  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING):
        assert list(loader.batches(0)) == list(range(2000))
        assert list(loader.batches(1)) == list(range(2000))
        other = loader.batches(2)
        next(other)
        other.close()  # type: ignore[attr-defined]
    assert closed == [0, 1, 2]
    assert [
        m for m in caplog.messages if m.startswith("loader dali: images are decoded on the host")
    ] == caplog.messages
    assert len(caplog.messages) == 1
    assert opened(tiny_dataset, "cpu")._host_check is None  # type: ignore[attr-defined]
    loader.close()


@needs_dali
def test_a_pipeline_that_decodes_on_the_host_is_noticed(tiny_dataset: Path, tmp_path: Path) -> None:
    """The CPU's own threads, which are the ones that nvImageCodec's fallback uses."""
    from pipelines import EpochPlan
    from pipelines.loaders.dali.graph import build_graph
    from pipelines.loaders.dali.plan_files import write_plan

    shards, batch, augment = ShardSet.open(tiny_dataset, "train"), BatchSpec(50, 224), AugmentSpec.train()
    files = write_plan(Segment.whole(EpochPlan(shards, augment, 50, 224)), batch, tmp_path, whole_images=True)
    pipeline = build_graph(files, batch, augment, 1, LoaderOptions(2), standalone=True)
    pipeline.build()
    pipeline.run()
    began, images = dali_cpu_seconds(), 0
    while dali_cpu_seconds() - began < 0.2:
        pipeline.run()
        images += 50
    cpu_ms = 1000 * (dali_cpu_seconds() - began) / images
    assert judge_host_decoding(cpu_ms, 40 * 120).startswith("images are decoded on the host")


def test_flags_make_the_decoders_settings() -> None:
    parser = make_parser()
    assert decoder_options(parser.parse_args([])) == DecoderOptions()
    flags = ["--hw-decoder-load=0.9", "--no-fancy_upsampling", "--preallocate-percentile", "0", "--reader-queue=3"]
    assert decoder_options(parser.parse_args(flags)) == DecoderOptions(0.9, False, 0.0, 3)
    with pytest.raises(UserError, match=r"hw_decoder_load must be at most 1, not 2\.0"):
        decoder_options(parser.parse_args(["--hw-decoder-load=2"]))
    assert "\ndecoder:\n" in parser.format_help()


def test_a_run_records_the_decoders_settings(tiny_dataset: Path) -> None:
    shards = ShardSet.open(tiny_dataset, "train")
    with open_loader("synthetic", shards, BatchSpec(8, 32), AugmentSpec.train(), device="cpu") as loader:
        feed = SimpleNamespace(shards=shards, loaders=[loader], replicas=1)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        settings = SimpleNamespace(dataset_dir=tiny_dataset)
        loop = SimpleNamespace(training=feed, validation=None, model=model)
        described = describe_run(settings, loop, {}, {})  # type: ignore[arg-type]
    assert described["decoder"] == {
        "hw_decoder_load": 0.65,
        "fancy_upsampling": True,
        "preallocate_percentile": 99.0,
        "reader_queue": 2,
    }
