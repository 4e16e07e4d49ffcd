"""Steps a, b and c: the machine, DALI's graph by itself, and its pixels. Nothing here imports TensorFlow."""

import ctypes
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine as stamp
from bench.gpu.case import Settings
from kimagenet.diagnosis.gpu_stack import decoder_versions
from pipelines.augment import AugmentSpec
from pipelines.decoding import DecoderOptions
from pipelines.loader import BatchSpec, LoaderOptions
from pipelines.loaders.dali.host_time import judge_host_decoding, mean_pixels
from pipelines.loaders.dali.standalone import Rate, measure, open_pipeline, to_host
from pipelines.shards.shard_set import ShardSet
from pipelines.system.processes import cpu_count

Figures = Iterator[dict[str, Any]]
_NVIDIA_SMI = ("name", "driver_version", "memory.total", "compute_cap", "mig.mode.current", "pcie.link.gen.max")
LARGEST_MEAN = {True: 0.5, False: 1.5}  # grey levels, with and without fancy upsampling
_HARDWARE = 3  # NVJPEG_BACKEND_HARDWARE of nvjpeg.h


def machine(settings: Settings) -> Figures:
    """What is measured on."""
    found = stamp.machine()
    yield {name: found[name] for name in ("cpu", "cores", "memory_gib", "system")}
    yield {"gpu": smi(_NVIDIA_SMI) or "none"}
    nvimgcodec, nvjpeg = decoder_versions()
    yield {"nvimgcodec": nvimgcodec, "nvjpeg": nvjpeg, "tensorflow_is_installed": _is_installed("tensorflow")}
    yield {f"version_{name}": version for name, version in stamp.versions().items()}
    yield {"hardware_decoder": hardware_decoder()}


def smi(names: tuple[str, ...]) -> str:
    """What nvidia-smi says about the first GPU, "" without one."""
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else ""


def gpu_memory_mb() -> float | None:
    """Memory that is in use on the first GPU."""
    try:
        return float(smi(("memory.used",)))
    except ValueError:
        return None


def hardware_decoder() -> str:
    """Whether nvJPEG finds JPEG engines: it makes a handle for them, or says that the GPU has none."""
    try:
        library = ctypes.CDLL(str(_libnvjpeg()))
    except OSError as error:
        return f"unknown: {error}"
    handle = ctypes.c_void_p()
    status = library.nvjpegCreateEx(_HARDWARE, None, None, 0, ctypes.byref(handle))
    return "present" if status == 0 else f"none (nvJPEG's status {status})"


def _libnvjpeg() -> Path:
    for package in ("nvidia-nvjpeg-cu12", "nvidia-nvjpeg"):
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name.startswith("libnvjpeg.so"):
                return Path(str(file.locate()))
    return Path("libnvjpeg.so.12")


def _is_installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def speed(
    settings: Settings,
    *,
    work: str = "graph",
    device: str = "",
    dtype: str = "float32",
    augment: str = "full",
    batch: int = 128,
    threads: int = 0,
    native: bool = False,
    **decoder: Any,
) -> Figures:
    """Images/s and CPU time of one pipeline.

    Args:
        settings: of all cases.
        work: "graph", the loader's own graph; "decode", its decoder alone; "regions", region decoding on a GPU, which
            is expected to crash or to decode on the host.
        device: if it is not that of the settings.
        dtype: of the images.
        augment: "full", "standard" or "none".
        batch: batch size.
        threads: 0 for one a core.
        native: whether the CPU decodes regions and uses our own operator, as the loader does.
        decoder: fields of `DecoderOptions`.
    """
    shards = ShardSet.open(settings.dataset_dir, settings.split)
    options = LoaderOptions(threads or cpu_count(), device=device or settings.device, decoder=DecoderOptions(**decoder))
    spec = BatchSpec(_fitting(batch, shards), settings.image_size, dtype)
    if native:
        native = _native_is_available()
    with _pipeline(shards, spec, AugmentSpec.named(augment), options, work, native, device or settings.device) as pipe:
        rate = measure(pipe, spec.batch_size, settings.seconds, warm_up=settings.seconds / 3)
    yield _figures(rate, shards, options.device)


def _figures(rate: Rate, shards: ShardSet, device: str) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "images_per_s": round(rate.images_per_second, 1),
        "dali_cpu_ms": round(rate.dali_cpu_ms, 4),
        "host_cpu_ms": round(1000 * rate.cpu_seconds / rate.images, 4),
    }
    if device == "gpu":
        found = judge_host_decoding(rate.dali_cpu_ms, mean_pixels(shards.sizes))
        figures |= {"gpu_memory_mb": gpu_memory_mb(), "host_decoding": found}
    return figures


def _native_is_available() -> bool:
    from pipelines.loaders.dali import native

    return native.available()


def _fitting(batch: int, shards: ShardSet) -> int:
    return max(1, min(batch, len(shards.usable)))


@contextmanager
def _pipeline(
    shards: ShardSet,
    batch: BatchSpec,
    augment: AugmentSpec,
    options: LoaderOptions,
    work: str,
    native: bool,
    device: str,
) -> Iterator[Any]:
    if work == "graph":
        with open_pipeline(shards, batch, augment, options, whole_images=not native, native=native) as pipe:
            yield pipe
        return
    from nvidia.dali import fn, pipeline_def, types

    from pipelines.loaders.dali.graph import decode_whole, read
    from pipelines.loaders.dali.plan_files import write_plan
    from pipelines.plan import EpochPlan
    from pipelines.stream import Segment

    on_gpu = device == "gpu"
    plan = EpochPlan(shards, augment, batch.batch_size, batch.image_size)
    with tempfile.TemporaryDirectory(prefix="kimagenet-bench-") as folder:
        files = write_plan(Segment.whole(plan), batch, Path(folder), whole_images=True)

        @pipeline_def(
            batch_size=batch.batch_size,
            num_threads=options.workers,
            device_id=0 if on_gpu else None,
            prefetch_queue_depth=options.prefetch,
        )
        def graph() -> tuple[Any, Any]:
            encoded, label, planned = read(files, options.decoder.reader_queue)
            label = label.gpu() if on_gpu else label  # so that waiting for it waits for the device
            if work == "decode":
                reserved = options.decoder.preallocation(shards.sizes)
                return decode_whole(encoded, options.decoder, reserved, on_gpu), label
            image = fn.decoders.image_slice(
                encoded,
                planned[18:20],
                planned[20:22],
                device="mixed" if on_gpu else "cpu",
                output_type=types.RGB,
                jpeg_fancy_upsampling=options.decoder.fancy_upsampling,
                axis_names="HW",
                normalized_anchor=False,
                normalized_shape=False,
            )
            return image, label

        pipe = graph()
        pipe.build()
        yield pipe


def parity(
    settings: Settings, *, augment: str = "full", fancy_upsampling: bool = True, most: int = 20_000, batch: int = 64
) -> Figures:
    """The GPU's graph against the CPU's loader over a whole epoch, in grey levels of 0…255.

    On the CPU it is the GPU's graph by CPU operators. Black images are those of one value that the CPU's are not.
    """
    shards = ShardSet.open(settings.dataset_dir, settings.split)
    evaluation = AugmentSpec.evaluation()
    spec = evaluation if augment == "evaluation" else AugmentSpec.named(augment)
    size = BatchSpec(_fitting(batch, shards), settings.image_size)
    decoder = DecoderOptions(fancy_upsampling=fancy_upsampling)
    mine = LoaderOptions(cpu_count(), device=settings.device, decoder=decoder)
    native = _native_is_available()
    steps = len(shards.usable) // size.batch_size
    steps = max(1, min(steps, (2 * size.batch_size if settings.short else most) // size.batch_size))
    means: list[np.ndarray] = []
    greatest, black, other_labels = 0.0, 0, 0
    with (
        open_pipeline(shards, size, spec, mine, whole_images=True) as ours,
        open_pipeline(shards, size, spec, LoaderOptions(cpu_count()), native=native) as theirs,
    ):
        for _ in range(steps):
            images, wanted = ours.run(), theirs.run()
            found, expected = (to_host(batch[0]).astype(np.float32) for batch in (images, wanted))
            difference = np.abs(found - expected) * 127.5
            means.append(difference.mean(axis=(1, 2, 3)))
            greatest = max(greatest, float(np.max(difference)))
            black += int(np.sum(_is_flat(found) & ~_is_flat(expected)))
            other_labels += int(np.sum(to_host(images[1]) != to_host(wanted[1])))
    each = np.concatenate(means)
    yield {
        "images": len(each),
        "mean": round(float(each.mean()), 4),
        "worst_image_mean": round(float(each.max()), 4),
        "greatest": round(greatest, 3),
        "black": black,
        "other_labels": other_labels,
        "cpu_operator": "ours" if native else "DALI's (whole grey levels: mean 0.23)",
        "is_right": bool(each.mean() <= LARGEST_MEAN[fancy_upsampling] and not black and not other_labels),
    }


def _is_flat(images: np.ndarray) -> np.ndarray:
    """bool [N]: which images have one value only."""
    flat = images.reshape(len(images), -1)
    return flat.min(axis=1) == flat.max(axis=1)
