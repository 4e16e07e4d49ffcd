"""The demo data set: photo-sized JPEGs drawn by code, for a first run on a machine that has no data.

A class is one colour, one texture and one shape ("blue dotted disc"), and every combination is a class, so a model has
to see all three: who sees two of them is right one time in two at most. Neither flips and rotations nor the colour
jitter of the full augmentation turn one class into another.
"""

import fcntl
import itertools
import math
import os
import shutil
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from pipelines.building.build import BuildOptions, build
from pipelines.building.sources import open_source
from pipelines.errors import UserError
from pipelines.shards.dataset import DATASET_FILE
from pipelines.system.files import cache_directory
from pipelines.system.processes import cpu_count, run_tasks
from pipelines.system.progress import Progress, ProgressBar, silent

COLOURS = {"blue": (200, 245), "red": (-20, 25)}  # hue range, degrees
TEXTURES = ("dotted", "striped")
SHAPES = ("cross", "disc", "triangle")
CLASSES = tuple("-".join(parts) for parts in itertools.product(sorted(COLOURS), TEXTURES, SHAPES))

TRAIN_PER_CLASS = 150
VALIDATION_PER_CLASS = 32
JPEG_QUALITY = 90
DEMO_NAME = "demo-v1"  # a change to the pictures needs a new name: the old ones stay in users' caches
_RIM = 0.07  # of the object's radius: plain paint along its outline, so that a texture does not eat the shape
TRAIN_SHARDS, VALIDATION_SHARDS = 8, 2


def draw(class_index: int, rng: np.random.Generator) -> Image.Image:
    """One RGB scene of class `CLASSES[class_index]`, sides 320 to 500 pixels: clutter, the object, light and noise."""
    colour, texture, shape = CLASSES[class_index].split("-")
    width, height = (int(side) for side in rng.integers(320, 501, 2))
    scene = _background(width, height, rng)
    _clutter(scene, rng)
    _place_object(scene, colour, texture, shape, rng)
    _scratches(scene, rng)
    return _photograph(scene, rng)


def _colour(rng: np.random.Generator, hue: tuple[float, float], low: float = 0.3, high: float = 1.0) -> tuple[int, ...]:
    """A random RGB colour of a hue range (degrees); `low` and `high` bound its saturation."""
    hsv = (rng.uniform(*hue) % 360, 100 * rng.uniform(low, high), 100 * rng.uniform(0.55, 1.0))
    return ImageColor.getrgb("hsv({:.1f},{:.1f}%,{:.1f}%)".format(*hsv))


def _background(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Soft blotches around one random colour."""
    base = np.array(_colour(rng, (0, 360), 0.0, 0.6))
    blotches = base + rng.normal(0, 26, (int(rng.integers(4, 12)), int(rng.integers(4, 12)), 3))
    return Image.fromarray(np.clip(blotches, 0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def _clutter(scene: Image.Image, rng: np.random.Generator) -> None:
    """Plain ellipses and polygons of any colour, smaller than the object will be."""
    canvas = ImageDraw.Draw(scene)
    for _ in range(int(rng.integers(6, 16))):
        x, y = rng.uniform(0, scene.width), rng.uniform(0, scene.height)
        radius = rng.uniform(0.03, 0.13) * min(scene.size)
        corners = int(rng.integers(2, 6))
        if corners == 2:
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(rng, (0, 360)))
        else:
            angles = rng.uniform(0, 2 * math.pi) + 2 * math.pi * np.arange(corners) / corners
            points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
            canvas.polygon(points, fill=_colour(rng, (0, 360)))


def _place_object(scene: Image.Image, colour: str, texture: str, shape: str, rng: np.random.Generator) -> None:
    """Draws the object that names the class, near the middle and nearly upright; its texture runs at any angle."""
    radius = rng.uniform(0.30, 0.42) * min(scene.size)
    centre_x = scene.width * rng.uniform(0.42, 0.58)
    centre_y = scene.height * rng.uniform(0.42, 0.58)
    left, top = math.floor(centre_x - 1.3 * radius), math.floor(centre_y - 1.3 * radius)
    side = math.ceil(2.6 * radius)
    x = (np.arange(side, dtype=np.float32) + np.float32(left - centre_x)) / np.float32(radius)
    y = (np.arange(side, dtype=np.float32)[:, None] + np.float32(top - centre_y)) / np.float32(radius)
    depth = _inside(shape, *_turn(x, y, rng.uniform(-0.3, 0.3)))
    pattern = _pattern(texture, *_turn(x, y, rng.uniform(0, 2 * math.pi)), rng)

    paint = _colour(rng, COLOURS[colour], 0.75, 1.0)
    # The second ink is neutral, light or dark: the hue says the colour, and only the pattern says the texture.
    ink = int(rng.uniform(190, 245) if rng.random() < 0.5 else rng.uniform(15, 60))
    body = Image.new("RGB", (side, side), paint)
    body.paste((ink, ink, ink), mask=_mask(np.minimum(pattern, radius * (depth - _RIM))))
    scene.paste(body, (left, top), _mask(0.5 + radius * depth))


def _mask(share: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * np.clip(share, 0, 1)).astype(np.uint8))


def _turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return c * x + s * y, c * y - s * x


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the outline, positive inside; all shapes have about the area of a disc of radius 0.85."""
    if shape == "disc":
        return 0.85 - np.hypot(x, y)
    if shape == "cross":
        x, y = np.abs(x), np.abs(y)
        return np.maximum(np.minimum(0.95 - x, 0.38 - y), np.minimum(0.38 - x, 0.95 - y))
    return 0.66 - np.maximum(y, np.float32(math.sqrt(3) / 2) * np.abs(x) - y / 2)


def _pattern(texture: str, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Up to 0 where the paint is, from 1 on where the second ink is: about a third of the area in both textures."""
    phase = np.float32(rng.uniform(0, 2 * math.pi))
    if texture == "striped":
        wave = np.cos(np.float32(2 * math.pi / rng.uniform(0.45, 0.7)) * x + phase) - np.float32(0.45)
    else:
        waves = np.float32(2 * math.pi / rng.uniform(0.3, 0.42))
        wave = np.cos(waves * x + phase) + np.cos(waves * y + phase) - np.float32(0.5)
    return np.float32(0.5) + 4 * wave


def _scratches(scene: Image.Image, rng: np.random.Generator) -> None:
    """Thin lines across everything."""
    canvas = ImageDraw.Draw(scene)
    for _ in range(int(rng.integers(0, 4))):
        x0, x1 = rng.uniform(0, scene.width, 2)
        y0, y1 = rng.uniform(0, scene.height, 2)
        canvas.line((x0, y0, x1, y1), fill=_colour(rng, (0, 360)), width=int(rng.integers(2, 6)))


def _photograph(scene: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light that falls off across the scene, and sensor noise."""
    pixels = np.array(scene, np.float32)
    height, width = pixels.shape[:2]
    slope_y, slope_x = rng.uniform(-0.25, 0.25, 2)
    across = np.linspace(1 - slope_x, 1 + slope_x, width, dtype=np.float32)
    down = np.linspace(-slope_y, slope_y, height, dtype=np.float32)
    pixels *= (np.float32(rng.uniform(0.75, 1.1)) * (across + down[:, None]))[..., None]
    grain = int(rng.integers(3, 15))
    pixels += rng.integers(-grain, grain + 1, (height, width, 1), np.int8)
    np.clip(pixels, 0, 255, out=pixels)
    return Image.fromarray(pixels.astype(np.uint8))


def write_images(
    directory: Path,
    train_per_class: int,
    validation_per_class: int,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = silent,
) -> None:
    """Writes train/<class>/*.jpg and validation/<class>/*.jpg; the same bytes each time with the same Pillow."""
    counts = {"train": train_per_class, "validation": validation_per_class}
    tasks = []
    for split_number, (split, count) in enumerate(counts.items()):
        for class_index, name in enumerate(CLASSES):
            folder = directory / split / name
            folder.mkdir(parents=True)
            tasks.append(_FolderTask(folder, class_index, count, (seed, split_number)))
    total = len(CLASSES) * sum(counts.values())
    done = 0
    progress("drawing the demo images", done, total)
    for count in run_tasks(_write_folder, tasks, workers or cpu_count()):
        done += count
        progress("drawing the demo images", done, total)


class _FolderTask(NamedTuple):
    folder: Path
    class_index: int
    images: int
    seed: tuple[int, int]


def _write_folder(task: _FolderTask) -> int:
    """Writes all images of one class in one split; how many they are."""
    for number in range(task.images):
        scene = draw(task.class_index, np.random.default_rng([*task.seed, task.class_index, number]))
        scene.save(task.folder / f"{task.folder.name}_{number:04d}.jpg", quality=JPEG_QUALITY)
    return task.images


def ensure_demo(cache_dir: Path | None = None, workers: int | None = None, progress: Progress | None = None) -> Path:
    """The folder of the demo's shards, built in the user's cache on the first call, at once on later ones.

    Args:
        cache_dir: instead of $XDG_CACHE_HOME/kimagenet (~/.cache/kimagenet).
        workers: processes that draw; default: one for each core.
        progress: default: a bar in the terminal.

    An interrupted call leaves nothing that a later one would take for the data set. Raises `UserError` if the
    cache cannot be written.
    """
    cache = cache_dir or cache_directory()
    demo = cache / DEMO_NAME
    if (demo / DATASET_FILE).exists():
        return demo
    with ExitStack() as stack:
        if progress is None:
            progress = stack.enter_context(closing(ProgressBar()))
        try:
            cache.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(cache / f"{DEMO_NAME}.lock", "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, then finds the data set
            if not (demo / DATASET_FILE).exists():
                partial = cache / f".{DEMO_NAME}.partial"
                shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed
                stack.callback(shutil.rmtree, partial, ignore_errors=True)
                _build_demo(partial, workers or cpu_count(), progress)
                shutil.rmtree(demo, ignore_errors=True)
                os.replace(partial / "shards", demo)
        except OSError as error:
            remedy = "set XDG_CACHE_HOME to a folder that can be written, or give --dataset-dir"
            raise UserError(f"{cache}: {error.strerror or error}; {remedy}") from None
    return demo


def _build_demo(partial: Path, workers: int, progress: Progress) -> None:
    images = partial / "images"
    write_images(images, TRAIN_PER_CLASS, VALIDATION_PER_CLASS, workers=workers, progress=progress)
    build(open_source(images), partial / "shards", BuildOptions(TRAIN_SHARDS, VALIDATION_SHARDS), workers, progress)
