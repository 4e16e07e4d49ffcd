"""What the GPU graph should reach, calculated on paper: bytes, launches and the published speed of decoders.

Nothing here was measured by us: no GPU was available. The sources are in README.md, "The GPU on paper". `python -m
bench gpu` measures the same.
"""

from dataclasses import dataclass
from typing import Any

# ImageNet as in the sources of the decoders' rates.
_IMAGENET_PIXELS = 469 * 387
_SAMPLE_BYTES = {"float32": 4, "float16": 2, "uint8": 1}
_MEMORY_EFFICIENCY = 0.7  # share of the peak bandwidth that streaming kernels reach, an assumption


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        memory: bandwidth of its memory, GB/s.
        pcie: bandwidth that PCIe reaches one way, GB/s.
        decode: ImageNet-sized JPEGs/s of the hardware decoder and the CUDA decoder together; None if there is no
            hardware decoder, so that the Huffman decoding on the host is the limit.
    """

    memory: float
    pcie: float
    decode: float | None


GPUS = {
    "T4": Gpu(memory=320, pcie=12, decode=None),
    "A100": Gpu(memory=1555, pcie=24, decode=7000),
    # Seven JPEG engines where the A100 has five; scaled by that.
    "H100": Gpu(memory=2000, pcie=50, decode=9800),
}


@dataclass(frozen=True)
class Stage:
    """One step of the GPU graph, `pipelines.loaders.dali.graph.build_graph`.

    Attributes:
        name: of DALI's operator.
        pcie_bytes: sent over PCIe for each image.
        memory_bytes: read and written in the GPU's memory for each image.
        launches: of kernels for each batch.
    """

    name: str
    pcie_bytes: float
    memory_bytes: float
    launches: int


def stages(
    pixels: float, jpeg_bytes: float, image_size: int, dtype: str, *, hybrid: bool, turns: bool = True
) -> list[Stage]:
    """The steps of the GPU graph.

    Args:
        pixels: height × width of the source images.
        jpeg_bytes: their size as JPEGs.
        image_size: side of the output, pixels.
        dtype: of the output.
        hybrid: whether the host does the Huffman decoding and sends coefficients, 2 bytes a sample.
        turns: whether the augmentation can turn images; where it cannot, the planned box is cut out first.
    """
    rgb, out = 3 * pixels, 3 * image_size**2
    result = out * _SAMPLE_BYTES[dtype]
    sent = 2 * rgb if hybrid else jpeg_bytes
    # Planes are written and read again, RGB is written. Hybrid decoding launches for each image, others for a batch.
    steps = [Stage("decode", sent, sent + 3 * rgb, 4)]
    if not turns:
        steps.append(Stage("slice", 0, 2 * rgb, 1))
    steps += [Stage("warp_affine", 0, rgb + 4 * out, 1), Stage("coord_transform", 0, 2 * 4 * out, 1)]
    if dtype != "uint8":
        steps.append(Stage("clamp", 0, 2 * 4 * out, 1))
    if dtype != "float32":
        steps.append(Stage("cast", 0, 4 * out + result, 1))
    return [*steps, Stage("copy into TensorFlow", 0, 2 * result, 1)]


def limits(gpu: Gpu, steps: list[Stage], pixels: float, host_decode_rate: float) -> dict[str, float]:
    """Images/s that each resource allows; the smallest one is the estimate.

    Args:
        gpu: the kind of GPU.
        steps: of the graph.
        pixels: height × width of the source images.
        host_decode_rate: full decodes/s of this machine's cores; the Huffman part is assumed to be half of one.
    """
    rate = 2 * host_decode_rate if gpu.decode is None else gpu.decode * _IMAGENET_PIXELS / pixels
    return {
        "host's Huffman decoding" if gpu.decode is None else "JPEG decoder": rate,
        "PCIe": gpu.pcie * 1e9 / sum(step.pcie_bytes for step in steps),
        "GPU memory": _MEMORY_EFFICIENCY * gpu.memory * 1e9 / sum(step.memory_bytes for step in steps),
    }


def for_device(
    name: str, dataset: dict[str, Any], image_size: int, dtype: str, host_decode_rate: float
) -> tuple[float, str] | None:
    """The estimate in images/s and the resource that limits it; None for a GPU that is not in the table.

    Args:
        name: the GPU's name, as its driver gives it.
        dataset: as `bench.machine.describe` gives it.
        image_size: side of the output, pixels.
        dtype: of the output.
        host_decode_rate: full decodes/s of this machine's cores.
    """
    gpu = next((gpu for kind, gpu in GPUS.items() if kind in name), None)
    if gpu is None:
        return None
    pixels = dataset["mean_height"] * dataset["mean_width"]
    steps = stages(pixels, 1000 * dataset["mean_kilobytes"], image_size, dtype, hybrid=gpu.decode is None)
    bounds = limits(gpu, steps, pixels, host_decode_rate)
    resource = min(bounds, key=lambda key: bounds[key])
    return bounds[resource], resource


def table(pixels: float, jpeg_bytes: float, image_size: int, dtype: str) -> str:
    """The stages as text, for README.md: `python -m bench.estimate`."""
    lines = [f"{'stage':22}{'PCIe kB':>10}{'memory kB':>12}{'launches/batch':>16}"]
    for step in stages(pixels, jpeg_bytes, image_size, dtype, hybrid=False):
        lines.append(
            f"{step.name:22}{step.pcie_bytes / 1000:10,.0f}{step.memory_bytes / 1000:12,.0f}{step.launches:16}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(_IMAGENET_PIXELS, 110_000, 224, "float32"))
    for kind, gpu in GPUS.items():
        steps = stages(_IMAGENET_PIXELS, 110_000, 224, "float32", hybrid=gpu.decode is None)
        bounds = limits(gpu, steps, _IMAGENET_PIXELS, host_decode_rate=4 * 650)
        print(kind, {name: round(rate) for name, rate in bounds.items()})
