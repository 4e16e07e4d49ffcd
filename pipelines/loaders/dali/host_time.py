"""Notices that images which a GPU should decode are decoded on the host. Imports neither TensorFlow nor DALI."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

# CPU milliseconds of DALI's threads per image. Reading, parsing and launching take 0.05 to 0.15 ms whatever the size.
# Decoding takes 6 to 10 ns per pixel on the host (bench/results: 1.5 ms for 188,000 pixels); its Huffman part, which
# GPUs without JPEG engines leave to the host, about half of that.
_READING_MS = 0.15
_HOST_DECODING_NS = 6.0
_SUSPICIOUS_NS = 2.5


def judge_host_decoding(cpu_ms: float, pixels: float) -> str:
    """What the CPU time of GPU decoding means.

    Args:
        cpu_ms: CPU milliseconds of DALI's threads per image.
        pixels: height × width of the images, the mean.

    Returns:
        What is wrong and its probable cause; "" if the host only reads.
    """
    if cpu_ms < _READING_MS + _SUSPICIOUS_NS * pixels / 1e6:
        return ""
    spent = f"each image takes {cpu_ms:.2f} ms of CPU time, reading alone about 0.1"
    if cpu_ms < _READING_MS + _HOST_DECODING_NS * pixels / 1e6:
        cause = "the host does the Huffman decoding, as for GPUs without JPEG engines and for progressive JPEGs"
        return f"a part of the GPU's decoding runs on the host: {spent}; {cause}"
    cause = "DALI_NVIMGCODEC_LOG_LEVEL=3 shows why nvImageCodec does not use the GPU"
    return f"images are decoded on the host, not on the GPU: {spent}; {cause}"


def mean_pixels(sizes: np.ndarray) -> float:
    """The mean of height × width, of sizes int [N, 2]; of a part of them if there are many."""
    some = sizes[:: max(1, len(sizes) // 100_000)].astype(np.float64)
    return float((some[:, 0] * some[:, 1]).mean())


def dali_cpu_seconds(tasks: Path = Path("/proc/self/task")) -> float:
    """CPU time of the threads of this process that belong to DALI, in seconds (Linux; elsewhere 0)."""
    ticks = 0
    for task in tasks.iterdir() if tasks.is_dir() else ():
        try:
            name, fields = (task / "stat").read_text(encoding="utf-8").rpartition(")")[::2]
        except OSError:  # the thread has ended
            continue
        if "([DALI]" in name:
            ticks += sum(map(int, fields.split()[11:13]))  # user and system time
    return ticks / os.sysconf("SC_CLK_TCK")


class HostCheck:
    """Measures the CPU time of DALI's threads over the first images of an epoch.

    Args:
        sizes: int [N, 2], the heights and widths of the images.
        clock: gives CPU seconds.
    """

    WARM_UP = 2_000  # images that are not measured: buffers grow, kernels are loaded
    MEASURED = 6_000  # images

    def __init__(self, sizes: np.ndarray, clock: Callable[[], float] = dali_cpu_seconds) -> None:
        self._pixels = mean_pixels(sizes)
        self._clock = clock
        self._images = 0
        self._began: tuple[int, float] | None = None
        self._done = False

    def count(self, images: int) -> str:
        """Counts a batch. Returns a warning once, when enough images are measured and were decoded on the host."""
        if self._done:
            return ""
        self._images += images
        if self._began is None:
            if self._images >= self.WARM_UP:
                self._began = self._images, self._clock()
            return ""
        first, seconds = self._began
        if self._images - first < self.MEASURED:
            return ""
        self._done = True
        return judge_host_decoding(1000 * (self._clock() - seconds) / (self._images - first), self._pixels)
