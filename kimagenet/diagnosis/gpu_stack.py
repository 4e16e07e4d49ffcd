"""Judges the versions that decode and train on a GPU. Pure functions: neither TensorFlow nor DALI is imported."""

from collections.abc import Sequence
from importlib import metadata

from packaging.version import InvalidVersion, Version

from kimagenet.diagnosis.findings import Finding

# Sources: NVIDIA/nvImageCodec#55; a message in its extension libnvjpeg_ext.so.0.9.0; the requirements of DALI's wheels.
_REGIONS_BREAK = Version("0.9.0")  # nvImageCodec
_REGIONS_WORK = Version("13.2")  # nvJPEG
_DALI_NEEDS = {Version("2.3"): "0.9", Version("2.4"): "0.9"}  # DALI's minor version: nvImageCodec's


def decoder_versions() -> tuple[str, str]:
    """The installed versions of nvImageCodec and nvJPEG, "" for what is not installed as a package."""
    return _newest("nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13"), _newest(
        "nvidia-nvjpeg-cu12", "nvidia-nvjpeg", "nvidia-nvjpeg-cu13"
    )


def _newest(*packages: str) -> str:
    found = []
    for package in packages:
        try:
            found.append(metadata.version(package))
        except metadata.PackageNotFoundError:
            continue
    return max(found, key=_parsed, default="")


def judge_decoder(dali: str, nvimgcodec: str, nvjpeg: str, *, on_gpu: bool) -> Finding:
    """Whether the decoders' versions fit each other.

    Args:
        dali: DALI's version.
        nvimgcodec: nvImageCodec's version, "" if it is not installed as a package.
        nvjpeg: nvJPEG's version, "" if it is not installed as a package.
        on_gpu: whether there is a GPU to decode on.
    """
    text = f"nvImageCodec {nvimgcodec or 'missing'}, nvJPEG {nvjpeg or 'missing'}"
    needed = next((need for minor, need in _DALI_NEEDS.items() if _parsed(dali).release[:2] == minor.release), None)
    if nvimgcodec and needed and not nvimgcodec.startswith(f"{needed}."):
        remedy = f"`pip install 'nvidia-nvimgcodec-cu12=={needed}.*'`"
        return Finding("decoder", "wrong", f"{text}: DALI {dali} needs nvImageCodec {needed}", remedy)
    if on_gpu and not nvjpeg:
        text += ": the GPU's JPEG decoder comes from a CUDA toolkit, or images are decoded on the host"
        return Finding("decoder", "note", text, "`pip install nvidia-nvjpeg-cu12`")
    if on_gpu and nvimgcodec and _parsed(nvimgcodec) >= _REGIONS_BREAK and _parsed(nvjpeg) < _REGIONS_WORK:
        text += (
            ": with this pair a GPU decodes regions of JPEGs on the host, or ends the process; "
            "kimagenet decodes whole images on a GPU, which works"
        )
    return Finding("decoder", "fine", text)


def judge_gpu_age(name: str, capability: tuple[int, int], built_for: Sequence[str]) -> Finding | None:
    """Whether a GPU is newer than what TensorFlow was built for.

    Args:
        name: the GPU's name.
        capability: its compute capability, (9, 0) for an H100.
        built_for: TensorFlow's list, such as "sm_80" and "compute_90".

    Returns:
        None if TensorFlow has code for this GPU, or its list is unknown.
    """
    known = [_capability(entry) for entry in built_for]
    if not known or capability[0] <= max(known)[0]:
        return None
    newest = ".".join(map(str, max(known)))
    text = (
        f"{name} (compute capability {capability[0]}.{capability[1]}) is newer than this TensorFlow (up to {newest}): "
        "the first start compiles all kernels, for up to half an hour, and XLA may crash (tensorflow#111958)"
    )
    return Finding("gpu age", "note", text, "train without XLA, or with a newer TensorFlow")


def _capability(entry: str) -> tuple[int, int]:
    """ "sm_90" and "compute_90" as (9, 0), "sm_120a" as (12, 0)."""
    digits = "".join(filter(str.isdigit, entry.rpartition("_")[2])) or "0"
    return int(digits[:-1] or 0), int(digits[-1])


def judge_decoding(images_per_second: float, cpu_ms: float, problem: str, warnings: Sequence[str]) -> Finding:
    """What a trial of the GPU's decoder showed.

    Args:
        images_per_second: of the whole graph.
        cpu_ms: CPU milliseconds of DALI's threads per image.
        problem: what `judge_host_decoding` says about it, "" if nothing.
        warnings: lines that nvImageCodec wrote.
    """
    text = f"{images_per_second:,.0f} images/s, {cpu_ms:.2f} ms of CPU time each"
    figures = {"images_per_second": images_per_second, "cpu_ms": cpu_ms, "warnings": float(len(warnings))}
    if warnings:
        text += f"; nvImageCodec wrote {len(warnings)} warnings, the first: {warnings[0].strip()[:200]}"
    if problem:
        text += f"; {problem}"
    if not problem and not warnings:
        return Finding("decoding", "fine", text, figures=figures)
    return Finding("decoding", "note", text, 'see docs/gpu.md, "Decoding on the host"', figures)


def _parsed(version: str) -> Version:
    try:
        return Version(version)
    except InvalidVersion:
        return Version("0")
