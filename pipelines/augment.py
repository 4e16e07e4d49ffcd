"""Augmentation is two matrices for each record, one for pixel positions and one for colours, drawn for many records.

The fields of `AugmentSpec` are the table of augmentations: each declares its neutral value, its limits, what it changes
and the columns of random numbers that it reads. Checks, `turns`, `jitters` and `is_random` follow from the table. A new
colour operation is one field and one line of arithmetic in `_colour`; a geometric one is one
field, one argument in `draw` and one line in `_affine`.

Geometry: the image is rotated about its centre on its own canvas, cropped, flipped, and resized to a square. If a spec
never rotates, the edges of a crop repeat, as in crop-then-resize. If it can rotate, pixels outside the image are black.
Colour: brightness, contrast, saturation and hue. Last comes the policy, if there is one: see `pipelines.policy`.
Loaders apply the matrices; nothing here touches a pixel.
"""

import re
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipelines.errors import UserError
from pipelines.operation import Operation, Part, declare, operations
from pipelines.policy import COLUMNS, LUMA, Policy
from pipelines.ranges import Range
from pipelines.uniform import RecordUniform

ROUNDING = 1e-6  # pixels: far more than the rounding errors of float64 here

_RGB_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_CROP_X, _CROP_Y = 7, 8  # columns of the crop's place


@dataclass(frozen=True, eq=False)
class Draws:
    """What was drawn for N records.

    Attributes:
        affine: float64 [N, 2, 3]; (x, y) in the output → (x, y) in the source image, both in pixels measured
            from the corner, so that the centre of the first pixel is (0.5, 0.5).
        colour: float64 [N, 3, 4]; (R, G, B, 1) in 0…255 → (R, G, B), not yet clipped.
        box: int32 [N, 4]; (y, x, height, width) of the region of the source that the output can touch. If the spec
            never turns images, it is the crop in whole pixels, and interpolation repeats its edges. It is the crop,
            too, if a policy moves the image; outside is black then.
    """

    affine: np.ndarray
    colour: np.ndarray
    box: np.ndarray


_SHARE = Range(at_least=0, at_most=1)
_POSITIVE_SHARE = Range(above=0, at_most=1)
_POSITIVE = Range(above=0)
_FACTOR = Range(at_least=0)
_DEGREES = Range(at_least=0, at_most=180, unit="degrees")


@dataclass(frozen=True)
class AugmentSpec:
    """The ranges that augmentation is drawn from. The defaults only resize: the largest square, centred.

    Raises:
        UserError: a value is outside its limits, or `center_crop` is combined with random augmentation.

    Attributes:
        crop_area: share of the source's area that the crop takes, rounded to whole pixels.
        crop_aspect: width / height of the crop, drawn log-uniformly.
        flip: probability of a horizontal flip.
        rotation: largest angle in degrees, in either direction.
        rotation_probability: how often an image is rotated at all.
        brightness: largest shift in either direction, as a share of full scale.
        contrast: factor around middle grey (127.5). Pillow and TensorFlow use the mean of the image, which a plan does
            not know.
        saturation: weight of the colour against its luma, as in Pillow. TensorFlow changes it in HSV.
        hue: largest rotation in the YIQ plane in degrees, in either direction, as in DALI. torchvision rotates in HSV.
        policy: operations that are drawn from a list, the last of all. With a rotation as well, "outside the crop" is
            outside the upright rectangle around the turned crop.
        center_crop: for evaluation only: side of the centred square / shorter side of the image.
    """

    crop_area: tuple[float, float] = declare((1.0, 1.0), _POSITIVE_SHARE, Part.CROP, columns=range(9, 29, 2))
    crop_aspect: tuple[float, float] = declare((1.0, 1.0), _POSITIVE, Part.CROP, columns=range(10, 30, 2))
    flip: float = declare(0.0, _SHARE, Part.MIRROR, columns=[0])
    rotation: float = declare(0.0, _DEGREES, Part.WARP, columns=[2], chance="rotation_probability")
    rotation_probability: float = declare(0.0, _SHARE, columns=[1])
    brightness: float = declare(0.0, _SHARE, Part.COLOUR, columns=[3])
    contrast: tuple[float, float] = declare((1.0, 1.0), _FACTOR, Part.COLOUR, columns=[4])
    saturation: tuple[float, float] = declare((1.0, 1.0), _FACTOR, Part.COLOUR, columns=[5])
    hue: float = declare(0.0, _DEGREES, Part.COLOUR, columns=[6])
    policy: Policy | None = declare(None, None, Part.ANY, columns=COLUMNS)  # noqa: RUF009 it makes a field
    center_crop: float | None = declare(None, _POSITIVE_SHARE)

    def __post_init__(self) -> None:
        for name, operation in self.operations.items():
            if problem := operation.problem(getattr(self, name)):
                raise UserError(f"augmentation: {name} {problem}")
        if self.center_crop is not None and self.is_random:
            raise UserError("augmentation: center_crop cannot be combined with random augmentation")

    @cached_property
    def operations(self) -> dict[str, Operation]:
        """What this class declares, by field."""
        return operations(self)

    @classmethod
    def train(cls) -> "AugmentSpec":
        """The augmentation of keras_imagenet: crop, flip, rotation, brightness and saturation."""
        return cls(
            crop_area=(0.6, 1.0),
            crop_aspect=(3 / 4, 4 / 3),
            flip=0.5,
            rotation=15.0,
            rotation_probability=0.75,
            brightness=32 / 255,
            saturation=(0.5, 1.5),
        )

    @classmethod
    def standard(cls) -> "AugmentSpec":
        """Random resized crop and flip, as in most ImageNet recipes (Szegedy et al., CVPR 2015, section 6)."""
        return cls(crop_area=(0.08, 1.0), crop_aspect=(3 / 4, 4 / 3), flip=0.5)

    @classmethod
    def trivial(cls) -> "AugmentSpec":
        """Random resized crop, flip, and one operation: TrivialAugmentWide (arXiv 2103.10158)."""
        return replace(cls.standard(), policy=Policy.trivial())

    @classmethod
    def rand(cls, count: int = 2, magnitude: int = 9) -> "AugmentSpec":
        """Random resized crop, flip, and `count` operations: RandAugment (arXiv 1909.13719); magnitude 0 … 30."""
        return replace(cls.standard(), policy=Policy.rand(count, magnitude))

    @classmethod
    def evaluation(cls, crop_ratio: float = 0.875) -> "AugmentSpec":
        """Resizes the shorter side to image_size / crop_ratio, takes the centred square. keras_imagenet used 1.0."""
        return cls(center_crop=crop_ratio)

    @classmethod
    def named(cls, name: str) -> "AugmentSpec":
        """The training augmentation of this name: "full", "standard", "none", "trivial", or "rand:N,M".

        Raises:
            UserError: there is no such name.
        """
        specs = {"full": cls.train(), "standard": cls.standard(), "none": cls(), "trivial": cls.trivial()}
        if found := re.fullmatch(r"rand:([0-9]{1,9}),([0-9]{1,9})", name):
            return cls.rand(*map(int, found.groups()))
        if name not in specs:
            raise UserError(f"augmentation: {name!r} is not one of {', '.join(specs)}, rand:N,M")
        return specs[name]

    @property
    def is_evaluation(self) -> bool:
        """Whether a plan with this spec visits every record exactly once, in file order."""
        return self.center_crop is not None

    @property
    def turns(self) -> bool:
        """Whether an affine matrix of this spec can do more than scale, shift and mirror the image."""
        return self._changes(Part.WARP, Part.ANY)

    @property
    def jitters(self) -> bool:
        """Whether a colour matrix of this spec can be other than the identity."""
        return self._changes(Part.COLOUR, Part.ANY)

    @property
    def has_tones(self) -> bool:
        """Whether a part of this augmentation is left to the training device; see `tones`."""
        return self.policy is not None and self.policy.has_tones

    @property
    def is_random(self) -> bool:
        """Whether this spec can change anything but the size. A crop of a fixed share is random: its place is."""
        return self.turns or self.jitters or self._changes(Part.CROP, Part.MIRROR)

    def _changes(self, *parts: Part) -> bool:
        """Whether one of the operations on these parts can be applied."""
        return any(
            getattr(self, name) != operation.neutral
            for name, operation in self.operations.items()
            if operation.part in parts and (not operation.chance or getattr(self, operation.chance) > 0)
        )

    def draw(self, uniform: RecordUniform, heights: np.ndarray, widths: np.ndarray, image_size: int) -> Draws:
        """Draws the augmentation of N images.

        Args:
            uniform: the random numbers of their N records.
            heights: [N], pixels.
            widths: [N], pixels.
            image_size: side of the output, pixels.

        Returns:
            The matrices and source boxes.
        """
        heights = np.asarray(heights, np.float64)
        widths = np.asarray(widths, np.float64)
        crop = self._crop(uniform, heights, widths)
        angle = np.deg2rad(self.amount("rotation", uniform))
        affine = _affine(crop, self.happens("flip", uniform), angle, heights, widths, image_size)
        colour = self._colour(uniform, len(heights))
        if self.policy is None:
            return Draws(affine, colour, source_box(affine, heights, widths, image_size, self.turns))
        drawn = self.policy.draw(uniform, image_size)
        warp = drawn.warp
        is_moved = np.any(warp != np.eye(3), axis=(1, 2))
        box = source_box(affine, heights, widths, image_size, ~is_moved)
        return Draws(affine @ warp, drawn.colour @ colour, box)

    def tones(self, uniform: RecordUniform, image_size: int) -> np.ndarray:
        """What the training device does to N images after the loader; see `pipelines.policy`.

        Args:
            uniform: the random numbers of their N records.
            image_size: side of the output, pixels.

        Returns:
            float32 [N, K, 2]: for each operation in its order a place in `pipelines.policy.TONES`, and its amount.
        """
        if self.policy is None:
            return np.zeros((len(uniform.records), 0, 2), np.float32)
        return self.policy.draw(uniform, image_size).tones

    def amount(self, name: str, uniform: RecordUniform) -> np.ndarray:
        """How much of an operation each of N records gets.

        Args:
            name: the field that declares the operation.
            uniform: the random numbers of the N records.

        Returns:
            float64 [N]: uniform in the field's range, or up to its value in either direction; neutral if not applied.
        """
        operation, value = self.operations[name], getattr(self, name)
        bounds = value if isinstance(operation.neutral, tuple) else (-value, value)
        amount = _between(uniform(operation.columns[0]), bounds)
        if not operation.chance:
            return amount
        return np.where(self.happens(operation.chance, uniform), amount, operation.neutral)

    def happens(self, name: str, uniform: RecordUniform) -> np.ndarray:
        """bool [N]: true with the probability that the field `name` gives."""
        return uniform(self.operations[name].columns[0]) < getattr(self, name)

    def _crop(self, uniform: RecordUniform, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """float64 [N, 4]: (x, y, width, height) of the crop, in whole pixels except for evaluation."""
        if self.center_crop is not None:
            side = np.minimum(heights, widths) * self.center_crop
            return np.stack([(widths - side) / 2, (heights - side) / 2, side, side], axis=1)
        # The first try that fits, as in torchvision and TF; else the largest centred crop of an allowed aspect.
        ratio = np.clip(widths / heights, *self.crop_aspect)
        crop_w = np.minimum(widths, heights * ratio)
        crop_h = np.minimum(heights, widths / ratio)
        place_x, place_y = np.full((2, len(heights)), 0.5)
        log_aspect = tuple(np.log(self.crop_aspect))
        pending = np.arange(0 if self.crop_area == (1.0, 1.0) else len(heights))
        tries = zip(self.operations["crop_area"].columns, self.operations["crop_aspect"].columns, strict=True)
        for area_column, aspect_column in tries:
            drawn = uniform.select(pending)
            area = _between(drawn(area_column), self.crop_area) * (heights * widths)[pending]
            aspect = np.exp(_between(drawn(aspect_column), log_aspect))
            try_w, try_h = np.sqrt(area * aspect), np.sqrt(area / aspect)
            fits = (try_w <= widths[pending]) & (try_h <= heights[pending])
            done = pending[fits]
            crop_w[done], crop_h[done] = try_w[fits], try_h[fits]
            place_x[done], place_y[done] = drawn.select(fits)(_CROP_X), drawn.select(fits)(_CROP_Y)
            pending = pending[~fits]
            if not len(pending):
                break
        # Whole pixels, as there: an image that is not turned is then a plain resize of a decoded region.
        crop_w, crop_h = np.maximum(np.round(crop_w), 1), np.maximum(np.round(crop_h), 1)
        x, y = np.floor(place_x * (widths - crop_w + 1)), np.floor(place_y * (heights - crop_h + 1))
        return np.stack([x, y, crop_w, crop_h], axis=1)

    def _colour(self, uniform: RecordUniform, count: int) -> np.ndarray:
        """float64 [N, 3, 4]: brightness, then contrast. Saturation and hue keep greys, so their order does not matter.

        Known differences: Pillow and TensorFlow scale contrast about the image's mean, which a plan cannot know.
        Saturation is as in Pillow; TensorFlow uses HSV. Hue turns in YIQ as in DALI; torchvision turns in HSV. Loaders
        clip once, after all operations.
        """
        brightness = 255 * self.amount("brightness", uniform)
        contrast = self.amount("contrast", uniform)
        saturation = self.amount("saturation", uniform)[:, None, None]
        linear = np.eye(3) * saturation + (1 - saturation) * LUMA
        if self.hue:
            turn = np.deg2rad(self.amount("hue", uniform))
            rotation = np.zeros((count, 3, 3))
            rotation[:, 0, 0] = 1
            rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(turn)
            rotation[:, 1, 2], rotation[:, 2, 1] = -np.sin(turn), np.sin(turn)
            linear = np.linalg.inv(_RGB_TO_YIQ) @ rotation @ _RGB_TO_YIQ @ linear
        colour = np.empty((count, 3, 4))
        colour[:, :, :3] = contrast[:, None, None] * linear
        colour[:, :, 3] = (contrast * brightness + (1 - contrast) * 127.5)[:, None]
        return colour


def _between(uniform: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return bounds[0] + uniform * (bounds[1] - bounds[0])


def _affine(
    crop: np.ndarray, flip: np.ndarray, angle: np.ndarray, heights: np.ndarray, widths: np.ndarray, image_size: int
) -> np.ndarray:
    """float64 [N, 2, 3], output → source: resize and flip into the crop, then turn back about the image's centre.

    `angle` [N] is in radians, counter-clockwise as the viewer sees the image.
    """
    x, y, crop_w, crop_h = crop.T
    scale_x = np.where(flip, -crop_w, crop_w) / image_size
    scale_y = crop_h / image_size
    from_centre_x = np.where(flip, x + crop_w, x) - widths / 2
    from_centre_y = y - heights / 2
    cos, sin = np.cos(angle), np.sin(angle)
    affine = np.empty((len(crop), 2, 3))
    affine[:, 0, 0], affine[:, 0, 1] = cos * scale_x, -sin * scale_y
    affine[:, 1, 0], affine[:, 1, 1] = sin * scale_x, cos * scale_y
    affine[:, 0, 2] = cos * from_centre_x - sin * from_centre_y + widths / 2
    affine[:, 1, 2] = sin * from_centre_x + cos * from_centre_y + heights / 2
    return affine


def source_box(
    affine: np.ndarray, heights: np.ndarray, widths: np.ndarray, image_size: int, turns: bool | np.ndarray
) -> np.ndarray:
    """The region of each source image that the output can touch.

    Args:
        affine: float64 [N, 2, 3], as in `Draws`.
        heights: [N], pixels.
        widths: [N], pixels.
        image_size: side of the output, pixels.
        turns: whether outside the image is black, for all images or bool [N]. Interpolation then needs one more pixel
            on each side, except for images that are neither turned nor enlarged.

    Returns:
        int32 [N, 4]: (y, x, height, width), inside the image.
    """
    corners = np.array([[0, 0, 1], [image_size, 0, 1], [0, image_size, 1], [image_size, image_size, 1]], np.float64)
    reached = affine @ corners.T  # [N, 2, 4]
    limits = np.stack([widths, heights], axis=1)
    rim = np.where(turns & ~is_plain_shrink(affine), 1, -ROUNDING)[:, None]
    low = np.clip(np.floor(reached.min(axis=2) - rim), 0, limits - 1)
    high = np.clip(np.ceil(reached.max(axis=2) + rim), low + 1, limits)
    return np.stack([low[:, 1], low[:, 0], (high - low)[:, 1], (high - low)[:, 0]], axis=1).astype(np.int32)


def is_plain_shrink(affine: np.ndarray) -> np.ndarray:
    """bool [N]: which of the matrices `affine` [N, 2, 3] neither turn nor enlarge."""
    sides = np.abs(affine[:, [0, 1], [0, 1]]).min(axis=1)
    return (np.abs(affine[:, [0, 1], [1, 0]]).max(axis=1) == 0) & (sides > 1 - ROUNDING)
