"""Augmentation is two matrices, one of pixel positions and one of colours, drawn for many records at once.

Geometry: the image is rotated about its centre on its own canvas, cropped, flipped, resized to a square. Where nothing
turns, a crop's edges repeat (as crop-then-resize does it); where images turn, outside is black.
Colour: brightness, contrast, saturation and hue. Loaders carry the matrices out; nothing here touches a pixel.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.errors import UserError
from pipelines.uniform import RecordUniform

# Each draw reads fixed columns of `uniform`, so switching one augmentation off leaves the others' draws alone.
_FLIP, _ROTATE, _ANGLE, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _CROP_X, _CROP_Y, _CROP_TRIES = range(10)
_TRIES = 10
ROUNDING = 1e-6  # pixels: far more than what float64 loses on the way

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as JPEG itself
_RGB_TO_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclass(frozen=True, eq=False)
class Draws:
    """What was drawn for N records.

    Attributes:
        affine: float64 [N, 2, 3]; (x, y) in the output → (x, y) in the source image, both in pixels measured
            from the corner, so that the centre of the first pixel is (0.5, 0.5).
        colour: float64 [N, 3, 4]; (R, G, B, 1) in 0…255 → (R, G, B), not yet clipped.
        box: int32 [N, 4]; (y, x, height, width) of the region of the source that the output can touch. Where nothing
            turns it is the crop, in whole pixels, and what interpolation asks for outside is its edge.
    """

    affine: np.ndarray
    colour: np.ndarray
    box: np.ndarray


@dataclass(frozen=True)
class AugmentSpec:
    """The ranges that augmentation is drawn from. The defaults change nothing but the size: largest square, centred.

    Attributes:
        crop_area: share of the source's area that the crop takes, rounded to whole pixels.
        crop_aspect: width / height of the crop, drawn log-uniformly.
        flip: probability of a horizontal flip.
        rotation: largest angle, degrees, either way; `rotation_probability`: how often an image is rotated at all.
        brightness: largest shift, as a share of full scale. contrast: factor about mid-grey (127.5).
        saturation: weight of the colour against its luma. hue: largest turn in the YIQ plane, degrees, either way.
        center_crop: for evaluation, the centred square's side over the shorter side; then nothing is random.
    """

    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    rotation: float = 0.0
    rotation_probability: float = 0.0
    brightness: float = 0.0
    contrast: tuple[float, float] = (1.0, 1.0)
    saturation: tuple[float, float] = (1.0, 1.0)
    hue: float = 0.0
    center_crop: float | None = None

    def __post_init__(self) -> None:
        for name in ("crop_area", "crop_aspect", "contrast", "saturation"):
            low, high = getattr(self, name)
            may_be_zero = name in ("contrast", "saturation")
            if not (0 <= low <= high < np.inf and (low > 0 or may_be_zero)):
                raise UserError(f"augmentation: {name} must be a range of positive numbers, not {low}…{high}")
        if self.crop_area[1] > 1:
            raise UserError(f"augmentation: crop_area cannot exceed 1, not {self.crop_area[1]}")
        for name in ("flip", "rotation_probability", "brightness"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation: {name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("rotation", "hue"):
            if not 0 <= getattr(self, name) <= 180:
                raise UserError(f"augmentation: {name} must be 0…180 degrees, not {getattr(self, name)}")
        if self.center_crop is not None and (self.is_random or not 0 < self.center_crop <= 1):
            raise UserError("augmentation: center_crop is in (0, 1] and goes with no random augmentation")

    @classmethod
    def train(cls) -> "AugmentSpec":
        """The original project's augmentation: crop, flip, rotation, brightness and saturation."""
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
        """Random resized crop and flip, as most published ImageNet recipes (Szegedy et al., CVPR 2015, section 6)."""
        return cls(crop_area=(0.08, 1.0), crop_aspect=(3 / 4, 4 / 3), flip=0.5)

    @classmethod
    def evaluation(cls, crop_ratio: float = 0.875) -> "AugmentSpec":
        """Shorter side to image_size / crop_ratio, then the centred square of image_size; the original: 1.0."""
        return cls(center_crop=crop_ratio)

    @classmethod
    def named(cls, name: str) -> "AugmentSpec":
        """The training augmentation that a recipe names: "full", "standard" or "none"."""
        specs = {"full": cls.train(), "standard": cls.standard(), "none": cls()}
        if name not in specs:
            raise UserError(f"augmentation: {name!r} is not one of {', '.join(specs)}")
        return specs[name]

    @property
    def is_evaluation(self) -> bool:
        """Whether a plan with this spec visits every record exactly once, in file order."""
        return self.center_crop is not None

    @property
    def turns(self) -> bool:
        """Whether an affine matrix of this spec can turn the image, not only scale, shift and mirror it."""
        return self.rotation * self.rotation_probability > 0

    @property
    def jitters(self) -> bool:
        """Whether a colour matrix of this spec can be other than the identity."""
        return bool(self.brightness or self.hue) or (self.contrast, self.saturation) != ((1.0, 1.0), (1.0, 1.0))

    @property
    def is_random(self) -> bool:
        """Whether anything but the size may change, and so two draws may differ; a fixed share is cropped anywhere."""
        crops = (self.crop_area, self.crop_aspect) != ((1.0, 1.0), (1.0, 1.0))
        return bool(self.flip) or self.turns or self.jitters or crops

    def draw(self, uniform: RecordUniform, heights: np.ndarray, widths: np.ndarray, image_size: int) -> Draws:
        """Draws for N images of the given heights and widths (pixels, [N] each); `uniform` is that of their records."""
        heights = np.asarray(heights, np.float64)
        widths = np.asarray(widths, np.float64)
        crop = self._crop(uniform, heights, widths)
        affine = _affine(crop, self._flip(uniform), self._angle(uniform), heights, widths, image_size)
        box = source_box(affine, heights, widths, image_size, self.turns)
        return Draws(affine, self._colour(uniform, len(heights)), box)

    def _crop(self, uniform: RecordUniform, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """float64 [N, 4]: (x, y, width, height) of the crop; whole pixels but for evaluation."""
        if self.center_crop is not None:
            side = np.minimum(heights, widths) * self.center_crop
            return np.stack([(widths - side) / 2, (heights - side) / 2, side, side], axis=1)
        # The first of ten tries that fits, as torchvision and TF do; else the largest centred crop of a legal aspect.
        ratio = np.clip(widths / heights, *self.crop_aspect)
        crop_w = np.minimum(widths, heights * ratio)
        crop_h = np.minimum(heights, widths / ratio)
        place_x, place_y = np.full((2, len(heights)), 0.5)
        log_aspect = tuple(np.log(self.crop_aspect))
        pending = np.arange(0 if self.crop_area == (1.0, 1.0) else len(heights))
        for attempt in range(_TRIES):
            drawn = uniform.select(pending)
            area = _between(drawn(_CROP_TRIES + 2 * attempt), self.crop_area) * (heights * widths)[pending]
            aspect = np.exp(_between(drawn(_CROP_TRIES + 2 * attempt + 1), log_aspect))
            try_w, try_h = np.sqrt(area * aspect), np.sqrt(area / aspect)
            fits = (try_w <= widths[pending]) & (try_h <= heights[pending])
            done = pending[fits]
            crop_w[done], crop_h[done] = try_w[fits], try_h[fits]
            place_x[done], place_y[done] = drawn.select(fits)(_CROP_X), drawn.select(fits)(_CROP_Y)
            pending = pending[~fits]
            if not len(pending):
                break
        # Whole pixels, as they do too: what is not turned is then a plain resize of a decoded region.
        crop_w, crop_h = np.maximum(np.round(crop_w), 1), np.maximum(np.round(crop_h), 1)
        x, y = np.floor(place_x * (widths - crop_w + 1)), np.floor(place_y * (heights - crop_h + 1))
        return np.stack([x, y, crop_w, crop_h], axis=1)

    def _flip(self, uniform: RecordUniform) -> np.ndarray:
        return uniform(_FLIP) < self.flip

    def _angle(self, uniform: RecordUniform) -> np.ndarray:
        """float64 [N], radians, counter-clockwise as one sees the image."""
        angle = _between(uniform(_ANGLE), (-self.rotation, self.rotation))
        return np.deg2rad(np.where(uniform(_ROTATE) < self.rotation_probability, angle, 0.0))

    def _colour(self, uniform: RecordUniform, count: int) -> np.ndarray:
        """float64 [N, 3, 4]: brightness, then contrast; saturation and hue keep greys, so they may stand anywhere.

        Others differ: contrast turns about the image's mean in Pillow and TensorFlow, which a plan cannot know.
        Saturation is Pillow's, TensorFlow's works in HSV; hue is DALI's turn in YIQ, torchvision's one in HSV. Loaders
        clip once, after all of it.
        """
        brightness = 255 * _between(uniform(_BRIGHTNESS), (-self.brightness, self.brightness))
        contrast = _between(uniform(_CONTRAST), self.contrast)
        saturation = _between(uniform(_SATURATION), self.saturation)[:, None, None]
        linear = np.eye(3) * saturation + (1 - saturation) * _LUMA
        if self.hue:
            turn = np.deg2rad(_between(uniform(_HUE), (-self.hue, self.hue)))
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
    """float64 [N, 2, 3], output → source: resize and flip into the crop, then turn back about the image's centre."""
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


def source_box(affine: np.ndarray, heights: np.ndarray, widths: np.ndarray, image_size: int, turns: bool) -> np.ndarray:
    """int32 [N, 4]: what the output covers in the source, inside the image.

    Where `turns`, a pixel wider if interpolation can look outside: not for what is neither turned nor enlarged.
    """
    corners = np.array([[0, 0, 1], [image_size, 0, 1], [0, image_size, 1], [image_size, image_size, 1]], np.float64)
    reached = affine @ corners.T  # [N, 2, 4]
    limits = np.stack([widths, heights], axis=1)
    rim = np.where(turns & ~is_plain_shrink(affine), 1, -ROUNDING)[:, None]
    low = np.clip(np.floor(reached.min(axis=2) - rim), 0, limits - 1)
    high = np.clip(np.ceil(reached.max(axis=2) + rim), low + 1, limits)
    return np.stack([low[:, 1], low[:, 0], (high - low)[:, 1], (high - low)[:, 0]], axis=1).astype(np.int32)


def is_plain_shrink(affine: np.ndarray) -> np.ndarray:
    """bool [N]: which of the matrices [N, 2, 3] neither turn nor enlarge."""
    sides = np.abs(affine[:, [0, 1], [0, 1]]).min(axis=1)
    return (np.abs(affine[:, [0, 1], [1, 0]]).max(axis=1) == 0) & (sides > 1 - ROUNDING)
