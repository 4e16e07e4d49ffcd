"""Policies: operations that are drawn for each image from a list, as in TrivialAugment and RandAugment. NumPy only.

The definitions and ranges are those of torchvision's `TrivialAugmentWide` and `RandAugment`, and so Pillow's. They act
on the image after its crop and flip, at the output's size; what comes from outside the crop is black.

An operation is carried out where it costs least:

- shear, translation and rotation are factors of the affine matrix;
- brightness and saturation are factors of the colour matrix, if no other operation on colours comes before them;
- all other operations on colours need statistics of the image, its neighbours, or whole grey levels. They are a number
  and an amount for each record, its *tones*, which the training device applies: `kimagenet.training.tones`.

Where several operations follow each other, these things differ from doing one after the other:

- Geometry comes before colours. So black from outside the crop counts in the statistics of autocontrast, equalize and
  contrast, and is changed with the rest, also if the geometry was drawn later.
- Several geometric operations are one warp: what one moves out of the image and the next moves back is not lost.
- Brightness or saturation in the colour matrix is not rounded to whole grey levels, and is clipped after the warp.

`tests/test_tones.py` bounds this. At magnitude 9 of RandAugment, pairs differ by 3 grey levels on average where both
are geometric, and by 4 (contrast) or 10 (equalize) where geometry was drawn second; other pairs by less than 1, not
counting the borders.
"""

from dataclasses import dataclass, field

import numpy as np

from pipelines.errors import UserError
from pipelines.ranges import check_ranges, within
from pipelines.uniform import RecordUniform

GEOMETRY = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
LINEAR = ("brightness", "saturation")
COLOURS = (*LINEAR, "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize")
OPERATIONS = ("identity", *GEOMETRY, *COLOURS)
TONES = ("none", *COLOURS)  # their places are the numbers of tones

LARGEST_MAGNITUDE = 30
MOST_OPERATIONS = 8  # of one image
FIRST_COLUMN = 29
COLUMNS = range(FIRST_COLUMN, FIRST_COLUMN + 3 * MOST_OPERATIONS)  # for each operation: which, magnitude, sign

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in JPEG

_FACTORS = ("brightness", "saturation", "contrast", "sharpness")


@dataclass(frozen=True)
class Policy:
    """Which operations an image gets, and how strong they are.

    Raises:
        UserError: a value is out of range, or a name is unknown.

    Attributes:
        count: operations of an image, one after the other.
        magnitude: of all operations, 0 … 30; None: drawn for each operation, all 31 whole numbers alike.
        wide: whether the ranges are those of TrivialAugmentWide; else those of RandAugment.
        names: the operations that are drawn from, all alike.
    """

    count: int = field(default=1, metadata=within(at_least=1, at_most=MOST_OPERATIONS))
    magnitude: int | None = field(default=None, metadata=within(at_least=0, at_most=LARGEST_MAGNITUDE))
    wide: bool = True
    names: tuple[str, ...] = OPERATIONS

    def __post_init__(self) -> None:
        check_ranges(self)
        if unknown := [name for name in self.names if name not in OPERATIONS]:
            raise UserError(f"augmentation: {unknown[0]!r} is not one of {', '.join(OPERATIONS)}")
        if not self.names:
            raise UserError("augmentation: a policy needs at least one operation")

    @classmethod
    def trivial(cls) -> "Policy":
        """TrivialAugmentWide (Müller and Hutter, arXiv 2103.10158): one operation of any magnitude."""
        return cls()

    @classmethod
    def rand(cls, count: int = 2, magnitude: int = 9) -> "Policy":
        """RandAugment (Cubuk et al., arXiv 1909.13719): several operations, all of one magnitude."""
        return cls(count, magnitude, wide=False)

    @property
    def has_tones(self) -> bool:
        """Whether the training device may have something to do."""
        late = () if self.count > 1 else LINEAR  # a single one is in the colour matrix
        return any(name in COLOURS and name not in late for name in self.names)

    def draw(self, uniform: RecordUniform, image_size: int) -> "Operations":
        """Draws the operations of N images.

        Args:
            uniform: the random numbers of their N records.
            image_size: side of the output, pixels.
        """
        numbers = np.array([OPERATIONS.index(name) for name in self.names])
        drawn, amounts = [], []
        for first in COLUMNS[: 3 * self.count : 3]:
            which = numbers[(uniform(first) * len(numbers)).astype(int)]
            magnitude = np.floor(uniform(first + 1) * (LARGEST_MAGNITUDE + 1))
            if self.magnitude is not None:
                magnitude[:] = self.magnitude
            sign = np.where(uniform(first + 2) < 0.5, -1, 1)
            drawn.append(which)
            amounts.append(self._amounts(magnitude / LARGEST_MAGNITUDE, sign, image_size)[which, range(len(which))])
        return Operations(np.stack(drawn, axis=1), np.stack(amounts, axis=1), image_size)

    def _amounts(self, share: np.ndarray, sign: np.ndarray, image_size: int) -> np.ndarray:
        """float64 [14, N]: how much each operation would do, in its own unit, at a share of its largest magnitude."""
        found = dict.fromkeys(OPERATIONS, np.zeros(len(share)))
        shift = 32 if self.wide else 150 / 331 * image_size
        shear, angle, factor, bits = (0.99, 135, 0.99, 6) if self.wide else (0.3, 30, 0.9, 4)
        found |= dict.fromkeys(("shear_x", "shear_y"), shear * share * sign)  # pixels for each pixel
        found |= dict.fromkeys(("translate_x", "translate_y"), np.trunc(shift * share) * sign)  # pixels
        found["rotate"] = angle * share * sign  # degrees
        found |= dict.fromkeys(_FACTORS, 1 + factor * share * sign)
        found["posterize"] = 8 - np.round(bits * share)  # bits that are kept
        found["solarize"] = 255 - 255 * share  # grey levels
        return np.stack([found[name] for name in OPERATIONS])


@dataclass(frozen=True, eq=False)
class Operations:
    """What a policy drew for N images, K operations each, in their order.

    Attributes:
        numbers: int [N, K], places in `OPERATIONS`.
        amounts: float64 [N, K]. Shears in pixels for each pixel, translations in pixels, rotations in degrees
            counter-clockwise, factors, bits, thresholds in grey levels.
        image_size: side of the output, pixels.
    """

    numbers: np.ndarray
    amounts: np.ndarray
    image_size: int

    @property
    def warp(self) -> np.ndarray:
        """float64 [N, 3, 3]: (x, y, 1) in the output → the same in the image after crop and flip, from its corner."""
        total = np.tile(np.eye(3), (len(self.numbers), 1, 1))
        for place in range(self.numbers.shape[1]):
            total = total @ self._warp_of(place)
        return total

    @property
    def colour(self) -> np.ndarray:
        """float64 [N, 3, 3]: (R, G, B) → (R, G, B), what the colour matrix does of these operations."""
        factors = np.where(self._in_matrix, self.amounts, 1)
        is_brightness = self.numbers == OPERATIONS.index("brightness")
        brightness = np.where(is_brightness, factors, 1).prod(axis=1)[:, None, None]
        saturation = np.where(is_brightness, 1, factors).prod(axis=1)[:, None, None]
        return brightness * (np.eye(3) * saturation + (1 - saturation) * LUMA)

    @property
    def tones(self) -> np.ndarray:
        """float32 [N, K, 2]: what the training device does of these operations: a place in `TONES`, and the amount."""
        first = OPERATIONS.index(COLOURS[0]) - 1
        is_tone = (self.numbers > first) & ~self._in_matrix
        tones = np.stack([self.numbers - first, self.amounts], axis=2)
        return np.where(is_tone[:, :, None], tones, 0).astype(np.float32)

    @property
    def _in_matrix(self) -> np.ndarray:
        """bool [N, K]: the operations that the colour matrix does; at most one of an image."""
        is_colour = np.isin(self.numbers, [OPERATIONS.index(name) for name in COLOURS])
        is_linear = np.isin(self.numbers, [OPERATIONS.index(name) for name in LINEAR])
        return is_linear & (np.cumsum(is_colour, axis=1) == 1)

    def _warp_of(self, place: int) -> np.ndarray:
        """float64 [N, 3, 3]: the warp of the operations at one place; the identity for those on colours."""
        numbers, amounts, middle = self.numbers[:, place], self.amounts[:, place], self.image_size / 2
        shear_x, shear_y, right, down, angle = (
            np.where(numbers == OPERATIONS.index(name), amounts, 0) for name in GEOMETRY
        )
        cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        warp = np.zeros((len(numbers), 3, 3))
        warp[:, 0, 0], warp[:, 0, 1], warp[:, 0, 2] = cos, shear_x - sin, middle * (1 - cos + sin) - right
        warp[:, 1, 0], warp[:, 1, 1], warp[:, 1, 2] = shear_y + sin, cos, middle * (1 - cos - sin) - down
        warp[:, 2, 2] = 1
        return warp
