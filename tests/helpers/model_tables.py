"""What the models must be: counts and layer tables, written from the papers and from keras_imagenet's own counts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """At 1000 classes. `convolutions` counts depthwise ones too, `norms` those inside nested models too."""

    total: int
    trainable: int
    non_trainable: int
    convolutions: int
    norms: int
    penalized: int  # weights under L2


COUNTS = {
    "googlenet_bn": Counts(7_020_392, 7_005_832, 14_560, 57, 57, 6_990_272),
    "inception_v2": Counts(11_214_888, 11_194_984, 19_904, 69, 69, 11_174_080),
    "inception_v2x": Counts(10_570_536, 10_551_784, 18_752, 70, 70, 10_532_032),
    "inception_mobilenet": Counts(4_854_696, 4_820_968, 33_728, 74, 74, 4_786_240),
    "osnet": Counts(2_440_952, 2_418_864, 22_088, 139, 85, 2_387_776),
    "efficientnet_b0": Counts(5_330_564, 5_288_548, 42_016, 81, 49, 5_236_192),
    "efficientnet_b1": Counts(7_856_232, 7_794_184, 62_048, 115, 69, 7_716_976),
    "efficientnet_b4": Counts(19_466_816, 19_341_616, 125_200, 160, 96, 19_186_376),
    "mobilenet_v2": Counts(3_538_984, 3_504_872, 34_112, 52, 52, 3_469_760),
    "resnet50": Counts(25_636_712, 25_583_592, 53_120, 53, 53, 25_502_912),
    "resnet50_v1_5": Counts(25_610_152, 25_557_032, 53_120, 53, 53, 25_502_912),
}

# Parameters of each stage: those of the layers whose names start with the key.
STAGES = {
    "resnet50_v1_5": {
        "conv1": 9_664,
        "conv2": 218_624,
        "conv3": 1_226_752,
        "conv4": 7_118_848,
        "conv5": 14_987_264,
        "Logits": 2_049_000,
    },
    "googlenet_bn": {
        "conv1": 9_664,
        "conv2": 115_712,
        "inception_3a": 164_800,
        "inception_3b": 390_656,
        "inception_4a": 378_048,
        "inception_4b": 451_104,
        "inception_4c": 512_096,
        "inception_4d": 607_488,
        "inception_4e": 871_424,
        "inception_5a": 1_046_528,
        "inception_5b": 1_447_872,
        "Logits": 1_025_000,
    },
    "inception_v2": {
        "conv_1a": 9_664,
        "conv_2b": 4_352,
        "conv_2c": 111_360,
        "mixed_3b": 220_032,
        "mixed_3c": 261_248,
        "mixed_4a": 386_176,
        "mixed_4b": 611_712,
        "mixed_4c": 667_136,
        "mixed_4d": 897_920,
        "mixed_4e": 1_110_144,
        "mixed_5a": 1_441_792,
        "mixed_5b": 2_185_472,
        "mixed_5c": 2_282_880,
        "Logits": 1_025_000,
    },
    "inception_v2x": {
        "conv_1a": 9_664,
        "conv_2b": 4_352,
        "conv_2c": 74_240,
        "conv_3a": 221_952,
        "mixed_3b": 220_032,
        "mixed_3c": 247_808,
        "mixed_3d": 269_440,
        "mixed_3e": 379_392,
        "mixed_4a": 398_464,
        "mixed_4b": 699_904,
        "mixed_4c": 1_110_144,
        "mixed_5a": 1_441_792,
        "mixed_5b": 2_185_472,
        "mixed_5c": 2_282_880,
        "Logits": 1_025_000,
    },
    "inception_mobilenet": {
        "conv_1a": 9_664,
        "conv_2a": 74_240,
        "mixed_2b": 22_272,
        "mixed_2c": 22_272,
        "mixed_3a": 22_272,
        "mixed_3b": 77_312,
        "mixed_3c": 77_312,
        "mixed_3d": 85_632,
        "mixed_4a": 86_848,
        "mixed_4b": 303_424,
        "mixed_4c": 285_696,
        "mixed_4d": 285_696,
        "mixed_5a": 285_696,
        "mixed_5b": 1_095_680,
        "mixed_5c": 1_095_680,
        "Logits": 1_025_000,
    },
    "osnet": {
        "conv_1": 9_664,
        "stage_2a": 89_040,
        "stage_2b": 83_920,
        "stage_2t": 66_560,
        "stage_3a": 269_112,
        "stage_3b": 181_560,
        "stage_3t": 148_992,
        "stage_4a": 498_592,
        "stage_4b": 316_320,
        "stage_4t": 264_192,
        "Logits": 513_000,
    },
    "efficientnet_b0": {
        "stem": 992,
        "block1": 1_544,
        "block2": 17_770,
        "block3": 48_336,
        "block4": 248_210,
        "block5": 551_116,
        "block6": 2_044_396,
        "block7": 722_480,
        "top": 414_720,
        "Logits": 1_281_000,
    },
    "efficientnet_b1": {
        "stem": 992,
        "block1": 2_220,
        "block2": 29_104,
        "block3": 80_666,
        "block4": 353_190,
        "block5": 762_600,
        "block6": 2_637_340,
        "block7": 2_294_400,
        "top": 414_720,
        "Logits": 1_281_000,
    },
    "efficientnet_b4": {
        "stem": 1_488,
        "block1": 4_386,
        "block2": 69_374,
        "block3": 202_834,
        "block4": 1_076_026,
        "block5": 2_330_532,
        "block6": 8_690_116,
        "block7": 4_489_076,
        "top": 809_984,
        "Logits": 1_793_000,
    },
}

# A row of a layer table: kernel, stride, width, side of the output for a 224-pixel input.
Row = tuple[int, int, int, int]


def googlenet_table() -> dict[str, Row]:
    """Convolutions of GoogLeNet: arXiv 1409.4842, table 1."""
    rows = {"conv1": (7, 2, 64, 112), "conv2_reduce": (1, 1, 64, 56), "conv2": (3, 1, 192, 56)}
    # block: side | #1×1 | #3×3 reduce | #3×3 | #5×5 reduce | #5×5 | pool proj
    blocks = """
        3a 28  64  96 128 16  32  32
        3b 28 128 128 192 32  96  64
        4a 14 192  96 208 16  48  64
        4b 14 160 112 224 24  64  64
        4c 14 128 128 256 24  64  64
        4d 14 112 144 288 32  64  64
        4e 14 256 160 320 32 128 128
        5a  7 256 160 320 32 128 128
        5b  7 384 192 384 48 128 128
    """
    kernels = {"1x1": 1, "3x3_reduce": 1, "3x3": 3, "5x5_reduce": 1, "5x5": 5, "pool_proj": 1}
    for line in blocks.strip().splitlines():
        block, side, *widths = line.split()
        for (branch, kernel), width in zip(kernels.items(), widths, strict=True):
            rows[f"inception_{block}_{branch}"] = (kernel, 1, int(width), int(side))
    return rows


def inception_v2_table() -> dict[str, Row]:
    """Convolutions of Inception v2: arXiv 1502.03167, figure 5, with TF-slim's pool projections of 4d and 4e (96)."""
    rows = {"conv_1a": (7, 2, 64, 112), "conv_2b": (1, 1, 64, 56), "conv_2c": (3, 1, 192, 56)}
    # block: stride | side | #1×1 | #3×3 reduce | #3×3 | double #3×3 reduce | double #3×3 | pool proj; 0: none
    blocks = """
        3b 1 28  64  64  64  64  96  32
        3c 1 28  64  64  96  64  96  64
        4a 2 14   0 128 160  64  96   0
        4b 1 14 224  64  96  96 128 128
        4c 1 14 192  96 128  96 128 128
        4d 1 14 160 128 160 128 160  96
        4e 1 14  96 128 192 160 192  96
        5a 2  7   0 128 192 192 256   0
        5b 1  7 352 192 320 160 224 128
        5c 1  7 352 192 320 192 224 128
    """
    for line in blocks.strip().splitlines():
        block, *numbers = line.split()
        stride, side, one, reduce, three, reduce_double, double, projection = map(int, numbers)
        name, before = f"mixed_{block}", side * stride
        if one:
            rows[f"{name}_1x1"] = (1, 1, one, side)
            rows[f"{name}_pool_proj"] = (1, 1, projection, side)
        rows[f"{name}_3x3_reduce"] = (1, 1, reduce, before)
        rows[f"{name}_3x3"] = (3, stride, three, side)
        rows[f"{name}_double3x3_reduce"] = (1, 1, reduce_double, before)
        rows[f"{name}_double3x3_a"] = (3, 1, double, before)
        rows[f"{name}_double3x3_b"] = (3, stride, double, side)
    return rows


# Where pools stand: pool size, stride, side of the output, and whether it takes the maximum.
GOOGLENET_POOLS = {
    "pool1": (3, 2, 56, "max"),
    "pool2": (3, 2, 28, "max"),
    "pool3": (3, 2, 14, "max"),
    "pool4": (3, 2, 7, "max"),
    **{f"inception_{b}_pool": (3, 1, 28, "average") for b in ("3a", "3b")},
    **{f"inception_{b}_pool": (3, 1, 14, "average") for b in ("4a", "4b", "4c", "4d", "4e")},
    **{f"inception_{b}_pool": (3, 1, 7, "average") for b in ("5a", "5b")},
}
INCEPTION_V2_POOLS = {
    "pool_2a": (3, 2, 56, "max"),
    "pool_3a": (3, 2, 28, "max"),
    "mixed_4a_pool": (3, 2, 14, "max"),
    "mixed_5a_pool": (3, 2, 7, "max"),
    **{f"mixed_{b}_pool": (3, 1, 28, "average") for b in ("3b", "3c")},
    **{f"mixed_{b}_pool": (3, 1, 14, "average") for b in ("4b", "4c", "4d", "4e")},
    **{f"mixed_{b}_pool": (3, 1, 7, "average") for b in ("5b", "5c")},
}
