"""Settings of the GPU's JPEG decoder."""

from dataclasses import dataclass, field

import numpy as np

from pipelines.ranges import check_ranges, within


@dataclass(frozen=True)
class DecoderOptions:
    """How a GPU decodes JPEGs. On the CPU only `reader_queue` has an effect.

    The defaults are those of DALI 2.4, except `fancy_upsampling` and `preallocate_percentile`.

    Attributes:
        hw_decoder_load: share of each batch that the hardware JPEG engines decode, 0 to 1; the CUDA decoder takes the
            rest. A100, H100 and newer GPUs have such engines; on other GPUs it has no effect.
        fancy_upsampling: whether chroma is interpolated as libjpeg does it, so that GPU and CPU give the same pixels.
            False may be faster and differs by about one grey level on average.
        preallocate_percentile: percentile of the data set's image heights and widths for which the hardware decoder
            reserves memory, 0 to 100; 0 reserves nothing. At 100, one huge image decides for the whole batch.
        reader_queue: batches of compressed records that are read ahead, at least 1.

    Raises:
        UserError: a value is out of range.
    """

    hw_decoder_load: float = field(default=0.65, metadata=within(at_least=0, at_most=1))
    fancy_upsampling: bool = True
    preallocate_percentile: float = field(default=99.0, metadata=within(at_least=0, at_most=100))
    reader_queue: int = field(default=2, metadata=within(at_least=1))

    def __post_init__(self) -> None:
        check_ranges(self)

    def preallocation(self, sizes: np.ndarray) -> tuple[int, int]:
        """The height and width to reserve memory for, in pixels.

        Args:
            sizes: int [N, 2], the heights and widths of the images.

        Returns:
            The percentile of each, rounded up; (0, 0) to reserve nothing.
        """
        if not self.preallocate_percentile or not len(sizes):
            return 0, 0
        height, width = np.ceil(np.percentile(sizes, self.preallocate_percentile, axis=0)).astype(int).tolist()
        return height, width
