"""The checks that import TensorFlow and DALI. They run in a separate process, because a library may end it.

python -m kimagenet.diagnosis.libraries SECONDS [DIR] writes a JSON line for each check that begins, and one for each
finding. DIR is a data set whose storage is measured.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from kimagenet.diagnosis import decoding, gpu_stack, storage, trials
from kimagenet.diagnosis.findings import Finding
from pipelines import loaders
from pipelines.errors import first_line
from pipelines.loader import Unavailable
from pipelines.loaders import dali
from pipelines.loaders.dali import native
from pipelines.system.standard_streams import take_stdout

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
Check = Callable[[], Iterator[Finding]]


def main() -> None:
    """Runs the checks."""
    seconds, dataset = float(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None
    out = take_stdout()

    def write(line: dict) -> None:
        print(json.dumps(line), file=out, flush=True)

    for name, check in checks(seconds, dataset).items():
        write({"begins": name})
        for finding in guarded(name, check):
            write(dataclasses.asdict(finding))


def checks(seconds: float, dataset: Path | None = None) -> dict[str, Check]:
    """All checks by name, in the order in which they run.

    Args:
        seconds: length of the self test of each loader, and of the measurement of the storage.
        dataset: a folder of shards whose storage is measured, or None.
    """

    def readers() -> Iterator[Finding]:
        with tempfile.TemporaryDirectory(prefix="kimagenet-doctor-") as folder:
            yield from trials.readers(Path(folder), seconds)

    def decoder() -> Iterator[Finding]:
        yield from decoder_loads(seconds)

    of_dataset = {} if dataset is None else {"storage": partial(storage.trial, dataset, seconds)}
    return {
        "gpu": gpus,
        "training": trials.training,
        "dali": dali_loads,
        "decoder": decoder,
        "auto": auto,
        "loaders": readers,
        **of_dataset,
    }


def guarded(name: str, check: Check) -> Iterator[Finding]:
    """The findings of a check. An exception becomes a finding."""
    try:
        yield from check()
    except Exception as error:  # whatever it is, the other checks must run
        yield Finding(name, "wrong", f"{type(error).__name__}: {first_line(error)}")


def gpus() -> Iterator[Finding]:
    """Checks whether TensorFlow sees the machine's GPUs, and whether one is newer than TensorFlow's build."""
    import tensorflow as tf

    found = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    cuda = tf.sysconfig.get_build_info().get("cuda_version", "none")
    figures = {"tensorflow_gpus": len(found)}
    if found:
        names = ", ".join(details.get("device_name", "GPU") for details in found)
        yield Finding("gpu", "fine", f"TensorFlow {tf.__version__} (CUDA {cuda}) sees {names}", figures=figures)
        built_for = tf.sysconfig.get_build_info().get("cuda_compute_capabilities", [])
        for details in found:
            capability = tuple(details.get("compute_capability", (0, 0)))
            if newer := gpu_stack.judge_gpu_age(details.get("device_name", "GPU"), capability, built_for):
                yield newer
    elif NVIDIA_DRIVER.exists():
        text = f"TensorFlow {tf.__version__} (CUDA {cuda}) sees no GPU, though there is a driver"
        remedy = "`pip install 'tensorflow[and-cuda]' nvidia-npp-cu12` brings CUDA's libraries"
        yield Finding("gpu", "wrong", text, f"{remedy}; CUDA_VISIBLE_DEVICES must not hide it", figures)
    else:
        text = f"TensorFlow {tf.__version__} sees no GPU, and there is no NVIDIA driver: everything runs on the CPU"
        yield Finding(
            "gpu", "note", text, "to use a GPU, take a machine with an NVIDIA GPU and install its driver", figures
        )


def dali_loads() -> Iterator[Finding]:
    """Checks whether DALI and its plugin load with this TensorFlow, and find the libraries that they need."""
    import tensorflow as tf

    if problem := dali.unavailable("cpu"):
        state = "note" if problem.is_missing else "wrong"
        yield Finding("dali", state, f"{problem.cause}; reading goes through tf.data", problem.remedy)
        return
    from nvidia.dali import __version__, backend

    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    count = backend.GetCUDADeviceCount() if has_gpu else 0
    sees = f"; it sees {count} GPU" + "s" * (count != 1) if has_gpu else ""
    text = f"{__version__}, its plugin loads under TensorFlow {tf.__version__}{sees}"
    yield Finding("dali", "fine", text, figures={"dali_gpus": count})
    if has_gpu:
        yield from dali_libraries(count, backend.GetNppVersion(), backend.GetCufftVersion())
    else:
        yield cpu_operator(native.unavailable())


def decoder_loads(seconds: float) -> Iterator[Finding]:
    """Checks the versions of the JPEG decoders, and whether a GPU decodes: it may leave that to the host."""
    import tensorflow as tf

    if dali.unavailable("cpu"):
        return  # another check says so
    from nvidia.dali import __version__

    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    yield gpu_stack.judge_decoder(__version__, *gpu_stack.decoder_versions(), on_gpu=has_gpu)
    if has_gpu:
        yield from decoding.trial("gpu", seconds)


def dali_libraries(count: int, npp: int, cufft: int) -> Iterator[Finding]:
    """Checks the libraries that DALI needs on a GPU and does not bring.

    Args:
        count: how many GPUs DALI sees.
        npp: version of NPP that DALI found, -1 for none.
        cufft: version of cuFFT that DALI found, -1 for none.
    """
    missing = {"NPP": "nvidia-npp-cu12", "cuFFT": "nvidia-cufft-cu12"}
    missing = {name: package for name, package in missing.items() if {"NPP": npp, "cuFFT": cufft}[name] == -1}
    if count < 1:
        remedy = "check with `nvidia-smi` whether the driver is new enough for CUDA 12"
        yield Finding("dali gpu", "wrong", "TensorFlow sees a GPU, DALI does not", remedy)
    elif missing:
        text = f"DALI does not find {' and '.join(missing)}, which its GPU operators need"
        yield Finding("dali gpu", "wrong", text, f"`pip install {' '.join(missing.values())}`")
    else:
        yield Finding("dali gpu", "fine", "DALI finds NPP and cuFFT")


def cpu_operator(problem: Unavailable | None) -> Finding:
    """Reports whether our own operator does the warp on the CPU. `problem` says why not, None if it does."""
    if problem is None:
        return Finding("operator", "fine", "our CPU operator for DALI is compiled and loaded")
    text = f"DALI's operators replace our CPU operator and are slower, because {problem.cause}"
    return Finding("operator", "note", text, problem.remedy)


def auto() -> Iterator[Finding]:
    """Which loader `--loader auto` takes, and why."""
    device = loaders.resolve_device("auto")
    choice = loaders.choose("auto", device, strict=False)
    why = choice.problem.cause if choice.problem else "DALI loads"
    place = "" if choice.is_fallback else f" on the {device}"
    yield Finding("auto", "fine", f"--loader auto takes {choice.loader}{place}, since {why}")


if __name__ == "__main__":
    main()
