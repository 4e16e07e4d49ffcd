"""Which cases `bench gpu` runs, in the order of their importance."""

from collections.abc import Iterator
from typing import Any

from bench.gpu.case import Case


def cases(device: str, *, short: bool = False, accuracy: tuple[str, ...] = ()) -> list[Case]:
    """All cases for a device.

    Args:
        device: "gpu", or "cpu" for the rehearsal, which asks each question once or twice.
        short: a rehearsal of a few seconds: steps a, b and c.
        accuracy: for step h: the folder of shards, then arguments of `kimagenet.train`; empty for the generated images.
    """
    if short:
        return list(_short())
    return list(_gpu(accuracy) if device == "gpu" else _rehearsal())


def broken() -> list[Case]:
    """A case that crashes and one that hangs, to see how they are reported."""
    return [Case("z", "crash", "case:crash", limit=20), Case("z", "hang", "case:hang", limit=10)]


def _speed(name: str, limit: float = 60, **arguments: Any) -> Case:
    return Case("b", name, "dali_alone:speed", arguments, limit)


def _parity(name: str, **arguments: Any) -> Case:
    return Case("c", name, "dali_alone:parity", arguments, 90)


def _reader(name: str, **arguments: Any) -> Case:
    return Case("d", name, "through_tensorflow:reader", arguments, 90)


def _training(name: str, **arguments: Any) -> Case:
    return Case("e", name, "through_tensorflow:training", arguments, 180)


def _gpu(accuracy: tuple[str, ...]) -> Iterator[Case]:
    yield Case("a", "machine", "dali_alone:machine", limit=60)
    yield _speed("graph")
    yield _speed("graph, simple upsampling", fancy_upsampling=False)
    yield _speed("graph, CPU", device="cpu", native=True)
    yield _speed("decode", work="decode")
    yield _parity("full")
    yield _parity("standard", augment="standard")
    yield _parity("full, simple upsampling", fancy_upsampling=False)
    yield _reader("dali", loader="dali")
    yield _reader("dali, CPU", loader="dali", device="cpu")
    yield _reader("tfdata", loader="tfdata", device="cpu")
    resnet: dict[str, Any] = {"model": "resnet50", "amp": "float16"}
    for loader in ("synthetic", "dali"):
        yield _training(f"resnet50, {loader}", loader=loader, **resnet)
    yield _speed("decode, hardware 0", work="decode", hw_decoder_load=0.0)
    yield _speed("decode, hardware 0.9", work="decode", hw_decoder_load=0.9)
    yield _speed("decode, hardware 1", work="decode", hw_decoder_load=1.0)
    yield Case("e", "gradients, resnet50", "through_tensorflow:gradients", {"model": "resnet50"}, 120)
    yield Case("f", "memory over 20 epochs", "through_tensorflow:memory", {}, 120)
    yield Case("f", "first batch, change of epoch", "through_tensorflow:first_batch", {}, 90)
    for policy in ("stop", "skip"):
        yield Case("g", f"corrupt record, {policy}", "faults:corrupt", {"policy": policy}, 150)
    yield Case("g", "kill -9 and resume", "faults:kill_and_resume", {}, 200)
    yield Case("f", "two devices on one GPU", "through_tensorflow:two_devices", {"model": "resnet50"}, 150)
    yield _reader("dali, uint8", loader="dali", dtype="uint8")
    yield _reader("dali, float16", loader="dali", dtype="float16")
    yield _reader("synthetic", loader="synthetic")
    for loader in ("synthetic", "dali"):
        yield _training(f"resnet50, {loader}, XLA", loader=loader, xla=True, **resnet)
    yield _training("resnet50, dali, CPU", loader="dali", device="cpu", **resnet)
    yield _training("resnet50, tfdata", loader="tfdata", device="cpu", **resnet)
    for loader in ("synthetic", "dali"):
        yield _training(f"mobilenet_v2, {loader}", model="mobilenet_v2", amp="float16", loader=loader)
    yield from _sweep()
    yield _parity("evaluation", augment="evaluation")
    given = {"dataset_dir": accuracy[0], "flags": accuracy[1:]} if accuracy else {}
    yield Case("h", "accuracy", "faults:accuracy", given, 900)
    yield _speed("regions on the GPU, expected to fail", work="regions")


def _sweep() -> Iterator[Case]:
    """The decoder's settings, one at a time."""
    for load in (0.5, 0.8):
        yield _speed(f"decode, hardware {load}", work="decode", hw_decoder_load=load)
    for load in (0.0, 0.65, 0.9, 1.0):
        yield _speed(f"decode, simple, hardware {load:g}", work="decode", hw_decoder_load=load, fancy_upsampling=False)
    for threads in (2, 4, 8, 16):
        yield _speed(f"graph, {threads} threads", threads=threads)
    for batch in (64, 256, 512):
        yield _speed(f"graph, batch {batch}", batch=batch)
    yield _speed("graph, nothing preallocated", preallocate_percentile=0.0)
    yield _speed("graph, reader queue 4", reader_queue=4)
    yield _speed("graph, standard augmentation", augment="standard")
    for dtype in ("float16", "uint8"):
        yield _speed(f"graph, {dtype}", dtype=dtype)


def _rehearsal() -> Iterator[Case]:
    """Every function once or twice, on the CPU. The GPU's graph runs by CPU operators."""
    small = {"batch": 32}
    yield Case("a", "machine", "dali_alone:machine", limit=60)
    yield _speed("graph", **small)
    yield _speed("graph, CPU", native=True, **small)
    yield _speed("decode", work="decode", **small)
    yield _parity("full", most=256)
    yield _parity("standard", augment="standard", most=256)
    yield _parity("evaluation", augment="evaluation", most=256)
    for loader in ("dali", "tfdata", "synthetic"):
        yield _reader(loader, loader=loader, **small)
    yield _reader("dali, uint8", loader="dali", dtype="uint8", **small)
    for loader in ("synthetic", "dali"):
        yield _training(f"demo, {loader}", model="demo", loader=loader, batch=16)
    yield _training("demo, dali, XLA", model="demo", loader="dali", batch=16, xla=True)
    yield Case("e", "gradients, demo", "through_tensorflow:gradients", {"model": "demo", "batch": 4}, 120)
    yield Case("f", "memory over 20 epochs", "through_tensorflow:memory", {"epochs": 8, "steps": 4, **small}, 120)
    yield Case("f", "first batch, change of epoch", "through_tensorflow:first_batch", {"batch": 16}, 120)
    yield Case("f", "two devices", "through_tensorflow:two_devices", {"model": "demo", "batch": 16}, 150)
    for policy in ("stop", "skip"):
        yield Case("g", f"corrupt record, {policy}", "faults:corrupt", {"policy": policy}, 200)
    yield Case("g", "kill -9 and resume", "faults:kill_and_resume", {}, 250)
    yield Case("h", "accuracy", "faults:accuracy", {}, 200)


def _short() -> Iterator[Case]:
    yield Case("a", "machine", "dali_alone:machine", limit=120)
    yield _speed("graph", limit=120, batch=16)
    yield Case("c", "full", "dali_alone:parity", {"batch": 16}, 120)
