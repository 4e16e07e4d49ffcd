"""The flags of the GPU's JPEG decoder: one group of a command's --help."""

import argparse

from kimagenet import cli
from pipelines.decoding import DecoderOptions

DESCRIPTION = "How a GPU decodes JPEGs; on the CPU only --reader-queue has an effect. See docs/gpu.md."


def add_decoder_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the group."""
    default = DecoderOptions()
    group = parser.add_argument_group("decoder", DESCRIPTION)
    group.add_argument(
        "--hw-decoder-load",
        type=float,
        default=default.hw_decoder_load,
        metavar="SHARE",
        help="share of each batch for the hardware JPEG engines, 0 to 1 (%(default)s)",
    )
    group.add_argument(
        "--fancy-upsampling",
        action=argparse.BooleanOptionalAction,
        default=default.fancy_upsampling,
        help="interpolate chroma as on the CPU; without it pixels differ slightly, and decoding may be faster",
    )
    group.add_argument(
        "--preallocate-percentile",
        type=float,
        default=default.preallocate_percentile,
        metavar="P",
        help="reserve the decoder's memory for this percentile of the image sizes; 0: none (%(default)g)",
    )
    group.add_argument(
        "--reader-queue",
        type=cli.positive_int,
        default=default.reader_queue,
        metavar="N",
        help="batches of compressed images read ahead (%(default)s)",
    )


def decoder_options(flags: argparse.Namespace) -> DecoderOptions:
    """The options that the flags make. Raises `UserError` if a value is out of range."""
    return DecoderOptions(
        flags.hw_decoder_load, flags.fancy_upsampling, flags.preallocate_percentile, flags.reader_queue
    )
