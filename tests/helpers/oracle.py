"""What a loader should give, worked out step by step with Pillow and NumPy from the ranges and the uniform numbers.

Written apart from `pipelines.augment` and `pipelines.policy`: no matrices, no source box; each step is done as its
documentation says.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pipelines import AugmentSpec

FLIP, ROTATE, ANGLE, BRIGHTNESS, CONTRAST, SATURATION, HUE, CROP_X, CROP_Y, FIRST_TRY = range(10)
FIRST_OPERATION = 29
COLUMNS = FIRST_OPERATION + 3 * 8

OPERATIONS = (
    "identity shear_x shear_y translate_x translate_y rotate brightness saturation contrast sharpness posterize"
)
OPERATIONS = (*OPERATIONS.split(), "solarize", "autocontrast", "equalize")
LUMA = np.array([0.299, 0.587, 0.114])

PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "solarize": ImageOps.solarize,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
}


def expected(jpeg: bytes, spec: AugmentSpec, u: dict[int, float], size: int) -> np.ndarray:
    """float64 [size, size, 3] in 0…255: decoded by Pillow, warped with bilinear weights, coloured, clipped.

    Of a policy it does what loaders do: geometry, and brightness or saturation if it is the first change of colours.
    """
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), np.float64)
    height, width = pixels.shape[:2]
    left, top, crop_w, crop_h = crop(spec, u, height, width)
    steps = (np.arange(size) + 0.5) / size
    columns, rows = np.meshgrid(steps, steps)
    drawn = policy(spec, u, size)
    is_moved = False
    for name, amount in reversed(drawn):
        if name in OPERATIONS[1:6]:
            columns, rows = _moved_back(name, amount, columns * size, rows * size, size)
            is_moved |= amount != 0
    columns = 1 - columns if u[FLIP] < spec.flip else columns
    if is_moved:  # outside the crop is black
        pixels = pixels[top : top + crop_h, left : left + crop_w]
        return _coloured(spec, u, drawn, _bilinear(pixels, columns * crop_w, rows * crop_h))
    x, y = left + columns * crop_w - width / 2, top + rows * crop_h - height / 2
    if u[ROTATE] < spec.rotation_probability:
        # Where a point of the turned image was before: turn it back, clockwise. y points down.
        turn = np.exp(1j * np.deg2rad(spec.rotation * (2 * u[ANGLE] - 1)))
        back = (x + 1j * y) * turn
        x, y = back.real, back.imag
    x, y = x + width / 2, y + height / 2
    if (
        not spec.rotation * spec.rotation_probability and not spec.policy
    ):  # the crop alone, of the pixels that it touches; its edges repeat
        x = np.clip(x, np.floor(left + 1e-6) + 0.5, np.ceil(left + crop_w - 1e-6) - 0.5)
        y = np.clip(y, np.floor(top + 1e-6) + 0.5, np.ceil(top + crop_h - 1e-6) - 0.5)
    return _coloured(spec, u, drawn, _bilinear(pixels, x, y))


def policy(spec: AugmentSpec, u: dict[int, float], size: int) -> list[tuple[str, float]]:
    """The operations of a policy in their order, each with its amount."""
    drawn = []
    for place in range(spec.policy.count if spec.policy else 0):
        which, magnitude, sign = (u[FIRST_OPERATION + 3 * place + column] for column in range(3))
        name = spec.policy.names[int(which * len(spec.policy.names))]
        bin = int(magnitude * 31) if spec.policy.magnitude is None else spec.policy.magnitude
        drawn.append((name, amount_of(name, bin, -1 if sign < 0.5 else 1, size, wide=spec.policy.wide)))
    return drawn


def finished(image: np.ndarray, drawn: list[tuple[str, float]]) -> np.ndarray:
    """What the training device makes of a loader's image, by Pillow's operations on whole grey levels."""
    colours = [(name, amount) for name, amount in drawn if name in PILLOW]
    late = colours[1:] if colours and colours[0][0] in ("brightness", "saturation") else colours
    if not late:
        return image
    picture = Image.fromarray(np.round(image).astype(np.uint8))
    for name, amount in late:
        picture = PILLOW[name](picture, amount)
    return np.asarray(picture, float)


def amount_of(name: str, bin: int, sign: int, size: int, *, wide: bool) -> float:
    """How much an operation does at one of the 31 magnitudes, as torchvision's documentation has it."""
    if name in ("identity", "autocontrast", "equalize"):
        return 0
    if name == "posterize":
        return 8 - round(bin / (30 / 6 if wide else 30 / 4))
    if name == "solarize":
        return 255 - bin * 8.5
    if name.startswith("translate"):
        return sign * int(bin / 30 * (32 if wide else 150 / 331 * size))
    if name.startswith("shear") or name == "rotate":
        largest = (135 if wide else 30) if name == "rotate" else (0.99 if wide else 0.3)
        return sign * bin / 30 * largest
    return 1 + sign * bin / 30 * (0.99 if wide else 0.9)


def _moved_back(name: str, amount: float, x: np.ndarray, y: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the points of the output were before the operation, as shares of the side."""
    if name == "shear_x":
        x = x + amount * y
    elif name == "shear_y":
        y = y + amount * x
    elif name == "translate_x":
        x = x - amount
    elif name == "translate_y":
        y = y - amount
    else:
        back = (x - size / 2 + 1j * (y - size / 2)) * np.exp(1j * np.deg2rad(amount))
        x, y = back.real + size / 2, back.imag + size / 2
    return x / size, y / size


def crop(spec: AugmentSpec, u: dict[int, float], height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, width and height."""
    if spec.center_crop:
        side = min(height, width) * spec.center_crop
        return (width - side) / 2, (height - side) / 2, side, side
    for attempt in range(10):
        area_u, aspect_u = u[FIRST_TRY + 2 * attempt], u[FIRST_TRY + 2 * attempt + 1]
        low, high = spec.crop_area
        area = (low + area_u * (high - low)) * height * width
        aspect = spec.crop_aspect[0] * (spec.crop_aspect[1] / spec.crop_aspect[0]) ** aspect_u
        crop_w, crop_h = (area * aspect) ** 0.5, (area / aspect) ** 0.5
        if crop_w <= width and crop_h <= height:
            return _whole(u[CROP_X], u[CROP_Y], crop_w, crop_h, height, width)
    aspect = min(max(width / height, spec.crop_aspect[0]), spec.crop_aspect[1])
    crop_w, crop_h = (width, width / aspect) if width / aspect <= height else (height * aspect, height)
    return _whole(0.5, 0.5, crop_w, crop_h, height, width)


def _whole(
    u_x: float, u_y: float, crop_w: float, crop_h: float, height: int, width: int
) -> tuple[float, float, float, float]:
    """Whole pixels: the corner is any at which the crop fits, all alike probable."""
    crop_w, crop_h = max(1, round(crop_w)), max(1, round(crop_h))
    return int(u_x * (width - crop_w + 1)), int(u_y * (height - crop_h + 1)), crop_w, crop_h


def _bilinear(pixels: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Samples at corner-based positions; every tap outside the image is black."""
    height, width = pixels.shape[:2]
    framed = np.zeros((height + 2, width + 2, 3))
    framed[1:-1, 1:-1] = pixels
    x, y = np.clip(x + 0.5, 0, width + 0.999), np.clip(y + 0.5, 0, height + 0.999)
    column, row = x.astype(int), y.astype(int)
    right, down = (x - column)[..., None], (y - row)[..., None]
    upper = framed[row, column] * (1 - right) + framed[row, column + 1] * right
    lower = framed[row + 1, column] * (1 - right) + framed[row + 1, column + 1] * right
    return upper * (1 - down) + lower * down


def _coloured(spec: AugmentSpec, u: dict[int, float], drawn: list[tuple[str, float]], image: np.ndarray) -> np.ndarray:
    image = _colour(spec, u, image)
    name, factor = next(((name, amount) for name, amount in drawn if name in OPERATIONS[6:]), ("", 1.0))
    if name == "brightness":
        image = image * factor
    if name == "saturation":
        luma = (image @ LUMA)[..., None]
        image = luma + (image - luma) * factor
    return np.clip(image, 0, 255)


def _colour(spec: AugmentSpec, u: dict[int, float], image: np.ndarray) -> np.ndarray:
    image = image + 255 * spec.brightness * (2 * u[BRIGHTNESS] - 1)
    low, high = spec.contrast
    image = 127.5 + (image - 127.5) * (low + u[CONTRAST] * (high - low))
    low, high = spec.saturation
    luma = image @ LUMA
    image = luma[..., None] + (image - luma[..., None]) * (low + u[SATURATION] * (high - low))
    if spec.hue:
        basis = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
        yiq = image @ basis.T
        turned = (yiq[..., 1] + 1j * yiq[..., 2]) * np.exp(1j * np.deg2rad(spec.hue * (2 * u[HUE] - 1)))
        image = np.stack([yiq[..., 0], turned.real, turned.imag], axis=-1) @ np.linalg.inv(basis).T
    return image
