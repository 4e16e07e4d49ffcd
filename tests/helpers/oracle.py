"""What a loader should give, worked out step by step with Pillow and NumPy from the ranges and the uniform numbers.

Written apart from `pipelines.augment`: no matrices, no source box; each step is done as its documentation says.
"""

import io

import numpy as np
from PIL import Image

from pipelines import AugmentSpec

FLIP, ROTATE, ANGLE, BRIGHTNESS, CONTRAST, SATURATION, HUE, CROP_X, CROP_Y, FIRST_TRY = range(10)


def expected(jpeg: bytes, spec: AugmentSpec, u: dict[int, float], size: int) -> np.ndarray:
    """float64 [size, size, 3] in 0…255: decoded by Pillow, warped with bilinear weights, coloured, clipped."""
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), np.float64)
    height, width = pixels.shape[:2]
    left, top, crop_w, crop_h = crop(spec, u, height, width)
    steps = (np.arange(size) + 0.5) / size
    columns, rows = np.meshgrid(steps[::-1] if u[FLIP] < spec.flip else steps, steps)
    x, y = left + columns * crop_w - width / 2, top + rows * crop_h - height / 2
    if u[ROTATE] < spec.rotation_probability:
        # Where a point of the turned image was before: turn it back, clockwise. y points down.
        turn = np.exp(1j * np.deg2rad(spec.rotation * (2 * u[ANGLE] - 1)))
        back = (x + 1j * y) * turn
        x, y = back.real, back.imag
    x, y = x + width / 2, y + height / 2
    if not spec.rotation * spec.rotation_probability:  # the crop alone, of the pixels that it touches; its edges repeat
        x = np.clip(x, np.floor(left + 1e-6) + 0.5, np.ceil(left + crop_w - 1e-6) - 0.5)
        y = np.clip(y, np.floor(top + 1e-6) + 0.5, np.ceil(top + crop_h - 1e-6) - 0.5)
    return _colour(spec, u, _bilinear(pixels, x, y))


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


def _colour(spec: AugmentSpec, u: dict[int, float], image: np.ndarray) -> np.ndarray:
    image = image + 255 * spec.brightness * (2 * u[BRIGHTNESS] - 1)
    low, high = spec.contrast
    image = 127.5 + (image - 127.5) * (low + u[CONTRAST] * (high - low))
    low, high = spec.saturation
    luma = image @ np.array([0.299, 0.587, 0.114])
    image = luma[..., None] + (image - luma[..., None]) * (low + u[SATURATION] * (high - low))
    if spec.hue:
        basis = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
        yiq = image @ basis.T
        turned = (yiq[..., 1] + 1j * yiq[..., 2]) * np.exp(1j * np.deg2rad(spec.hue * (2 * u[HUE] - 1)))
        image = np.stack([yiq[..., 0], turned.real, turned.imag], axis=-1) @ np.linalg.inv(basis).T
    return np.clip(image, 0, 255)
